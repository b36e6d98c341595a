import js from "@eslint/js";
import globals from "globals";

// What the page shows comes from files and captions of users: it goes in as text, never as HTML.
const html = ["innerHTML", "outerHTML", "insertAdjacentHTML", "write", "srcdoc"];

export default [
  js.configs.recommended,
  {
    files: ["web/**/*.js"],
    languageOptions: { globals: globals.browser },
    rules: {
      "no-restricted-properties": [
        "error",
        ...html.map((property) => ({ property, message: "Use textContent or elements." })),
      ],
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-console": "error",
      "no-var": "error",
      "prefer-const": "error",
      eqeqeq: "error",
    },
  },
  { files: ["tests/web/**/*.js"], languageOptions: { globals: globals.node } },
];
