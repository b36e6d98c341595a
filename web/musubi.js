// What the pack adds to ComfyUI's page: the training dashboard in the side bar.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Jobs } from "./dashboard/jobs.js";
import { Panel } from "./dashboard/panel.js";

const TAB = "musubi-training";
const OPEN_SETTING = "Musubi.Dashboard.OpenOnStart";

const jobs = new Jobs((path, options) => api.fetchApi(path, options));
/** @type {Set<string>} */
const seen = new Set();
/** @type {Panel | null} */
let panel = null;

/** Put the style sheet of the dashboard into the page, once. */
function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./dashboard/dashboard.css", import.meta.url).href;
  document.head.append(link);
}

/** Show the dashboard, where this front end tells which tab is open. */
function openDashboard() {
  const bar = app.extensionManager.sidebarTab;
  if (bar && bar.activeSidebarTabId !== TAB) bar.toggleSidebarTab(TAB);
}

/** Open the dashboard once for each job that runs: when it starts, and on a page that comes later. */
function openForNew() {
  const fresh = jobs.newest.filter((job) => job.running && !seen.has(job.summary.id));
  for (const job of fresh) seen.add(job.summary.id);
  if (fresh.length && app.extensionManager.setting.get(OPEN_SETTING)) openDashboard();
}

// Before anything else: an event that nobody listens to is lost.
api.addEventListener("musubi.job", ({ detail }) => jobs.update(detail));
api.addEventListener("reconnected", () => void jobs.refresh());

app.registerExtension({
  name: "Musubi.Dashboard",
  settings: [
    {
      id: OPEN_SETTING,
      name: "Open the dashboard when a training starts",
      category: ["Musubi", "Dashboard", "Open"],
      type: "boolean",
      defaultValue: true,
    },
  ],
  async setup() {
    addStyle();
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-chart-line",
      title: "Training",
      tooltip: "Musubi: loss, samples and buttons of trainings",
      type: "custom",
      render(where) {
        panel?.remove();
        panel = new Panel(jobs, (path) => api.apiURL(path));
        where.replaceChildren(panel.root);
      },
      destroy() {
        panel?.remove();
        panel = null;
      },
    });
    jobs.addEventListener("change", openForNew);
    await jobs.refresh();
  },
});
