/** Where words begin: a text field that keeps its draft, and a microphone with three ways to use it. */
import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { audioContext, Microphone, microphoneObstacle } from "../lib/audio.js";
import { attach, attachedTo, contentOf, detach, MOST_FILES, reattach } from "../lib/files.js";
import { firstLine, stopwatch } from "../lib/format.js";
import { html } from "../lib/html.js";
import { aloud, drafts, keepDraft } from "../lib/store.js";
import { Icon, IconButton, notify } from "../lib/ui.js";
import { t } from "../strings.js";

const microphone = new Microphone(); // one for the page, however many composers there are

/**
 * `talk` is a conversation; without one, `onFirst` begins it. `onLive` goes live, where that is offered.
 * @param {{ id: string, agent?: Agent, talk?: Conversation | null, onFirst?: (words: FirstWords) => Promise<unknown>, onLive?: () => unknown, still?: boolean, textOnly?: boolean }} props
 */
export function Composer({ id, agent, talk, onFirst, onLive, still, textOnly }) {
  const area = useRef(/** @type {any} */ (null));
  const picker = useRef(/** @type {any} */ (null));
  const text = drafts.value[id] ?? "";
  const uploads = attachedTo(id).value;
  const began = useSignal(0);
  const obstacle = useSignal(/** @type {keyof typeof t.mic | null} */ (null));
  const { state } = microphone;
  const live = talk?.live.value;
  const speaker = (live ?? talk?.messages.value.at(-1)?.live)?.speaker;
  const sounds = (speaker?.sounding.value ?? -1) >= 0 || (speaker?.level.value ?? 0) > 0;

  useLayoutEffect(() => {
    area.current.style.height = "auto";
    area.current.style.height = `${area.current.scrollHeight}px`;
  }, [text, id]);
  useEffect(() => { if (!still && matchMedia("(hover: hover)").matches) area.current.focus({ preventScroll: true }); }, [id]);

  const send = async () => {
    const words = text.trim();
    if (!words && !uploads.length) return;
    audioContext();
    await Promise.all(uploads.map((upload) => upload.done));
    if (uploads.some((upload) => upload.problem.peek())) return;
    const files = uploads.map((upload) => upload.part.peek()).filter((part) => part !== null);
    keepDraft(id, "");
    detach(id);
    try {
      await (talk ? talk.say(words, files) : onFirst?.({ text: words, files }));
    } catch { keepDraft(id, drafts.value[id] || words); if (!attachedTo(id).peek().length) reattach(id, uploads); }
  };
  const key = (/** @type {KeyboardEvent} */ event) => {
    // An input method confirms with Enter, too; Safari reports that one as key code 229 after the composition's end.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    if (matchMedia("(pointer: coarse)").matches) return; // on a phone Enter is a new line
    event.preventDefault();
    send();
  };

  const add = (/** @type {FileList | File[]} */ files) => { if (files.length && attach(id, files)) notify(t.files.most(MOST_FILES), "bad"); };
  const paste = (/** @type {ClipboardEvent} */ event) => { const files = event.clipboardData?.files; if (files?.length) { event.preventDefault(); add(files); } };
  useEffect(() => { // files are dropped anywhere on the page
    /** @param {DragEvent} event */
    const has = (event) => event.dataTransfer?.types.includes("Files");
    /** @param {DragEvent} event */
    const over = (event) => { if (has(event)) event.preventDefault(); };
    /** @param {DragEvent} event */
    const drop = (event) => { if (has(event)) { event.preventDefault(); add(event.dataTransfer?.files ?? []); } };
    addEventListener("dragover", over);
    addEventListener("drop", drop);
    return () => { removeEventListener("dragover", over); removeEventListener("drop", drop); };
  }, [id]);

  const listen = (/** @type {boolean} */ handsFree) => {
    microphone.handsFree = handsFree;
    microphone.answerSounds = () => speakerNow()?.playing ?? false;
    microphone.onSpeech = () => { if (speakerNow()?.playing || talk?.live.value) talk?.stop().catch(() => {}); began.value = performance.now(); };
    microphone.onRecording = async (recording) => {
      if (!handsFree) microphone.close();
      if (!recording || recording.durationMs < 300) return notify(t.mic.nothing, "bad");
      microphone.passesOn = handsFree && !talk;
      await (talk ? talk.speak(recording) : onFirst?.({ recording }))?.catch((/** @type {Problem} */ problem) => { microphone.passesOn = false; notify(problem.message, "bad"); });
    };
  };
  useEffect(() => { // hands-free goes on in the conversation that it has begun
    if (microphone.passesOn) listen(true);
    microphone.passesOn = false;
    return () => { if (!microphone.passesOn) microphone.close(); };
  }, [id]);
  const open = async (/** @type {boolean} */ handsFree) => {
    obstacle.value = microphoneObstacle();
    if (obstacle.value) return false;
    audioContext();
    listen(handsFree);
    try {
      await microphone.open();
      return true;
    } catch (error) {
      const name = error instanceof DOMException ? error.name : "";
      obstacle.value = name in t.mic ? /** @type {keyof typeof t.mic} */ (name) : "other";
      return false;
    }
  };
  const speakerNow = () => (talk?.live.value ?? talk?.messages.value.at(-1)?.live)?.speaker;
  const record = async () => {
    if (state.value === "recording") return microphone.release();
    if (speakerNow()?.playing) talk?.stop().catch(() => {});
    if (await open(false)) { began.value = performance.now(); microphone.hold(); }
  };
  const handsFree = async () => { if (microphone.handsFree && state.value !== "closed") microphone.close(); else await open(true); };

  const goLive = async () => {
    obstacle.value = microphoneObstacle();
    if (obstacle.value) return;
    audioContext(); // inside the click, for the sound of answers
    microphone.close();
    await Promise.resolve(talk?.stop()).then(() => onLive?.()).catch((problem) => notify(problem.message, "bad"));
  };

  useEffect(() => { // hold the space bar anywhere but in a field
    /** @param {KeyboardEvent} event */
    const idle = (event) => !textOnly && event.code === "Space" && !event.repeat && !/** @type {Element} */ (event.target).closest("input,textarea,button,a,select,dialog,[role=menu],[tabindex='0']");
    /** @param {KeyboardEvent} event */
    const down = (event) => { if (idle(event) && state.value === "closed") { event.preventDefault(); record(); } };
    /** @param {KeyboardEvent} event */
    const up = (event) => { if (event.code === "Space" && state.value === "recording" && !microphone.handsFree) { event.preventDefault(); microphone.release(); } };
    addEventListener("keydown", down);
    addEventListener("keyup", up);
    return () => { removeEventListener("keydown", down); removeEventListener("keyup", up); };
  });

  const on = state.value !== "closed";
  return html`<div class="composer-place">
    ${obstacle.value && html`<p class="note" role="alert">${t.mic[obstacle.value]}<${IconButton} name="close" label=${t.close} size=${16} onClick=${() => { obstacle.value = null; }} /></p>`}
    ${talk?.problem.value && talk.loaded.value && html`<p class="note" data-kind="bad" role="alert">${talk.problem.value.message}</p>`}
    ${talk?.next.value && html`<p class="note">${t.chat.next}<span class="grow">“${firstLine(talk.next.value.text)}”</span><${IconButton} name="close" label=${t.cancel} size=${16} onClick=${() => { keepDraft(id, talk.next.value?.text ?? ""); talk.next.value = null; }} /></p>`}
    <form class="composer" data-mic=${state.value} onSubmit=${(event) => { event.preventDefault(); send(); }}>
      ${uploads.length > 0 && html`<ul class="uploads" aria-label=${t.files.attached}>${uploads.map((upload) => html`<${Attachment} key=${upload.key} upload=${upload} remove=${() => { detach(id, upload); area.current.focus(); }} />`)}</ul>`}
      ${on && html`<${Listening} began=${began} handsFree=${microphone.handsFree} />`}
      <textarea ref=${area} rows="1" hidden=${on} aria-label=${t.chat.message} placeholder=${t.chat.placeholder(agent?.name ?? t.home.agentName)} value=${text} enterkeyhint="enter"
        onInput=${(event) => keepDraft(id, event.target.value)} onKeyDown=${key} onPaste=${paste}></textarea>
      <input ref=${picker} type="file" multiple hidden onChange=${(event) => { add([...event.target.files]); event.target.value = ""; }} />
      <div class="composer-row">
        <${IconButton} name="clip" label=${t.files.attach} onClick=${() => picker.current.click()} />
        ${!textOnly && html`<${IconButton} name=${aloud.value ? "sound" : "mute"} label=${t.chat.aloud} aria-pressed=${aloud.value} onClick=${() => { aloud.value = !aloud.value; }} />
        <button type="button" class="button quiet" aria-pressed=${on && microphone.handsFree} title=${t.chat.handsFree} onClick=${handsFree}><${Icon} name="wave" /><span class="wide-label">${on && microphone.handsFree ? t.chat.handsFreeOff : t.chat.handsFree}</span></button>`}
        ${onLive && !on && html`<button type="button" class="button quiet" title=${t.live.hint} onClick=${goLive}><${Icon} name="live" />${t.live.start}</button>`}
        <span class="grow"></span>
        ${on && !microphone.handsFree && html`<${IconButton} name="trash" label=${t.chat.discard} onClick=${() => { microphone.release(true); microphone.close(); }} />`}
        ${!textOnly && !(on && microphone.handsFree) && html`<button type="button" class="round" data-kind=${state.value === "recording" ? "live" : "plain"} aria-label=${state.value === "recording" ? t.chat.sendRecording : t.chat.talk} title=${t.chat.talkHint} onClick=${record}><${Icon} name=${state.value === "recording" ? "send" : "mic"} /></button>`}
        ${live || sounds ? html`<button type="button" class="round" data-kind="stop" aria-label=${t.chat.stop} title=${t.chat.stop} onClick=${() => talk?.stop()}><${Icon} name="stop" /></button>`
          : !on && html`<button class="round" data-kind="primary" aria-label=${t.chat.send} title=${t.chat.send} disabled=${!text.trim() && !uploads.length}><${Icon} name="send" /></button>`}
      </div>
    </form>
  </div>`;
}

/** One file of the message that is written: how far it is, or why it is not taken. @param {{ upload: Attachment, remove: () => void }} props */
function Attachment({ upload, remove }) {
  const part = upload.part.value;
  const problem = upload.problem.value;
  const percent = Math.round(upload.progress.value * 100);
  return html`<li class="upload" data-kind=${problem ? "bad" : "good"}>
    ${part?.type === "image" ? html`<img src=${contentOf(part.file_id)} alt="" />` : html`<${Icon} name="file" />`}
    <span><bdi title=${upload.name}>${upload.name}</bdi><small role=${problem ? "alert" : undefined}>${problem ? problem.message : part ? (part.text_tokens ? t.files.tokens(part.text_tokens) : `${part.width} × ${part.height}`) : html`<progress aria-label=${t.files.sending} max="100" value=${percent}></progress>`}</small></span>
    <${IconButton} name="close" label=${t.files.remove(upload.name)} size=${16} onClick=${remove} /></li>`;
}

const BARS = 48;
/** The voice as it comes in, newest at the right. @param {{ began: Signal<number>, handsFree: boolean }} props */
function Listening({ began, handsFree }) {
  const levels = useRef(Array(BARS).fill(0));
  const tick = useSignal(0);
  useEffect(() => {
    const timer = setInterval(() => { levels.current = [...levels.current.slice(1), microphone.level.peek()]; tick.value++; }, 60);
    return () => clearInterval(timer);
  }, []);
  const recording = microphone.state.value === "recording";
  return html`<div class="listening" data-recording=${recording} data-tick=${tick.value % 2}>
    <svg viewBox=${`0 0 ${BARS * 6} 40`} preserveAspectRatio="none" aria-hidden="true">${levels.current.map((level, index) => html`<rect key=${index} x=${index * 6 + 1.5} width="3" rx="1.5" y=${20 - Math.max(1.5, level * 19)} height=${Math.max(3, level * 38)} />`)}</svg>
    <span role="status">${recording ? `${t.chat.recording} ${stopwatch(performance.now() - began.value)}` : handsFree ? t.chat.handsFreeOn : t.loading}</span></div>`;
}
