// Elements of the page. Text goes in as text only: names, captions and messages come from files.

/**
 * @typedef {Record<string, string | number | boolean | null | undefined | ((event: any) => void)>} Attributes
 */

/**
 * An element. Attributes that begin with "on" are listeners, `true` is an attribute without value, and
 * `false`, null and undefined leave one out. Strings among the children become text.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes} [attributes]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(...children);
  return made;
}

/**
 * An icon of the set that ComfyUI brings; only a decoration.
 * @param {string} name
 */
export function icon(name) {
  return element("i", { class: `pi pi-${name}`, "aria-hidden": "true" });
}

/**
 * Set a text, and touch the page only where it changes: a screen reader speaks what is touched.
 * @param {HTMLElement} where
 * @param {string} text
 */
export function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}
