// ESLint's recommended rules for app/console; ESLint is no part of the console.
const browser = Object.fromEntries(
  ["addEventListener", "removeEventListener", "alert", "atob", "AudioContext", "AudioWorkletNode", "AudioWorkletProcessor", "Audio", "Blob", "clearInterval", "clearTimeout", "console", "crypto", "CSS", "DOMException", "document", "fetch", "FormData", "getComputedStyle", "Highlight", "history", "Intl", "IntersectionObserver", "isSecureContext", "localStorage", "location", "matchMedia", "navigator", "NodeFilter", "OfflineAudioContext", "performance", "Range", "registerProcessor", "requestAnimationFrame", "cancelAnimationFrame", "ResizeObserver", "setInterval", "setTimeout", "TextDecoderStream", "URL", "URLSearchParams", "window", "AbortController", "dispatchEvent", "Event", "XMLHttpRequest", "CSSStyleSheet", "WebSocket", "btoa", "sampleRate"].map((name) => [name, "readonly"]),
);

export default [
  {
    files: ["**/*.js"],
    languageOptions: { ecmaVersion: 2025, sourceType: "module", globals: browser },
    rules: {
      "constructor-super": "error", "for-direction": "error", "getter-return": "error", "no-async-promise-executor": "error",
      "no-class-assign": "error", "no-compare-neg-zero": "error", "no-cond-assign": "error", "no-const-assign": "error",
      "no-constant-binary-expression": "error", "no-constant-condition": ["error", { checkLoops: false }], "no-debugger": "error",
      "no-dupe-args": "error", "no-dupe-class-members": "error", "no-dupe-else-if": "error", "no-dupe-keys": "error",
      "no-duplicate-case": "error", "no-empty": "error", "no-eval": "error", "no-ex-assign": "error", "no-fallthrough": "off",
      "no-implied-eval": "error", "no-import-assign": "error", "no-invalid-regexp": "error", "no-loss-of-precision": "error",
      "no-new-func": "error", "no-redeclare": "error", "no-script-url": "error", "no-self-assign": "error", "no-self-compare": "error",
      "no-shadow-restricted-names": "error", "no-sparse-arrays": "error", "no-this-before-super": "error", "no-undef": "error",
      "no-unreachable": "error", "no-unsafe-finally": "error", "no-unsafe-negation": "error", "no-unsafe-optional-chaining": "error",
      "no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_", caughtErrors: "all" }],
      "no-useless-catch": "error", "no-var": "error", "prefer-const": "error", "require-yield": "error", "use-isnan": "error", "valid-typeof": "error", eqeqeq: "error",
      "no-restricted-properties": ["error", ...["innerHTML", "outerHTML", "insertAdjacentHTML", "dangerouslySetInnerHTML", "srcdoc"].map((property) => ({ property, message: "Texts never become markup." }))],
      "no-restricted-syntax": ["error", { selector: "JSXAttribute[name.name='dangerouslySetInnerHTML'], Property[key.name='dangerouslySetInnerHTML']", message: "Texts never become markup." }],
    },
  },
];
