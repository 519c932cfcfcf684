// What the programs share: their arguments, the provider's script, and the object that they print.
const [server, provider, key] = process.argv.slice(2);
export { key, provider, server };
export const results = {};

export async function check(name, work) {
  try {
    results[name] = await work();
  } catch (error) {
    results[name] = `${error?.name ?? "error"}: ${error?.message ?? error} ${error?.stack ?? ""}`.slice(0, 900);
  }
}

export async function script(orders) {
  await fetch(`${provider}/_control`, { method: "POST", body: JSON.stringify(orders) });
}

export async function lastRequestIsAborted() {
  for (let tries = 0; tries < 600; tries++) {
    const requests = await (await fetch(`${provider}/_requests`)).json();
    if (requests.at(-1).is_aborted) return true;
    if (requests.at(-1).is_ended) return false;
    await new Promise((done) => setTimeout(done, 50));
  }
  return false;
}

export async function get(path) {
  return (await fetch(`${server}${path}`)).json();
}

export async function until(isSo) {
  for (let tries = 0; tries < 1200; tries++) {
    if (await isSo()) return;
    await new Promise((done) => setTimeout(done, 25));
  }
  throw new Error("it did not happen");
}

export function print() {
  console.log(JSON.stringify(results));
  process.exit(0); // some clients keep connections open
}
