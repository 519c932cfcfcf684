// Lets Node.js 20 load the conformance suite: Debian's has no `fs.globSync`, which the suite
// imports for a command that the tests do not use.
import { register } from "node:module";

const fs =
  "export * from 'node:fs'; export { default } from 'node:fs'; export const globSync = () => [];";
const hooks = `export const resolve = (name, context, next) =>
  name === "fs" && context.parentURL?.includes("/conformance/dist/")
    ? { url: "data:text/javascript,${encodeURIComponent(fs)}", shortCircuit: true }
    : next(name, context);`;
register("data:text/javascript," + encodeURIComponent(hooks));
