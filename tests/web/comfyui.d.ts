// The few parts of ComfyUI's front end that web/ uses, as both supported front ends have them.

declare module "*/scripts/app.js" {
  interface SidebarTab {
    id: string;
    icon: string;
    title: string;
    tooltip: string;
    type: "custom";
    render(where: HTMLElement): void;
    destroy?(): void;
  }

  interface Extension {
    name: string;
    settings?: object[];
    setup?(): Promise<void>;
  }

  export const app: {
    registerExtension(extension: Extension): void;
    extensionManager: {
      registerSidebarTab(tab: SidebarTab): void;
      sidebarTab?: { activeSidebarTabId: string | null; toggleSidebarTab(id: string): void };
      setting: { get(id: string): unknown };
    };
  };
}

declare module "*/scripts/api.js" {
  export const api: {
    fetchApi(path: string, options?: RequestInit): Promise<Response>;
    apiURL(path: string): string;
    addEventListener(type: string, listener: (event: CustomEvent) => void): void;
  };
}
