// How much of the plan is used.

import { byId, el } from "./dom.js";
import { formatNumber, formatRelative, knows, t } from "./i18n.js";

/** Show `quota` in short (the limit that is nearest) and, opened, every limit. */
export function showQuota(quota) {
  const box = byId("quota");
  box.hidden = !quota;
  if (!quota) return;
  const limits = Object.entries(quota.limits || {})
    .filter(([, { limit } = {}]) => limit !== null && limit !== undefined && !Array.isArray(limit))
    .map(([name, values]) => ({ name, limit: Number(values.limit), used: Number(values.used) + Number(values.held || 0), resetsAt: values.resets_at }));
  // What is used up within the minute is no budget to plan with: it only comes first when nothing else is there.
  const fleeting = ({ name }) => Number(name === "requests_per_minute" || name === "concurrent_generations");
  const share = ({ used, limit }) => (limit > 0 ? used / limit : 1);
  limits.sort((a, b) => fleeting(a) - fleeting(b) || share(b) - share(a));
  byId("quota-plan").textContent = t("quota.plan", { plan: knows(`plan.${quota.plan}`) ? t(`plan.${quota.plan}`) : quota.plan });
  byId("quota-line").textContent = limits.length ? line(limits[0]) : t("quota.unlimited");
  byId("quota-bar").replaceWith(bar(limits[0], "quota-bar"));
  byId("quota-all").replaceChildren(...limits.map((limit) => el("li", {}, el("span", { text: line(limit) }), bar(limit), resets(limit))));
}

const line = ({ name, used, limit }) => t("quota.line", { used: formatNumber(used), limit: formatNumber(limit), name: nameOf(name) });

const nameOf = (name) => (knows(`quota.${name}`) ? t(`quota.${name}`) : name.replaceAll("_", " "));

function bar(limit, id = null) {
  const bar = el("progress", { id, max: limit?.limit || 1, value: limit ? Math.min(limit.used, limit.limit || 1) : 0, "aria-hidden": "true" });
  bar.hidden = !limit;
  if (limit && limit.used >= limit.limit * 0.9) bar.classList.add("nearly");
  return bar;
}

const resets = ({ resetsAt }) => el("small", { text: resetsAt ? t("quota.resets", { time: formatRelative(resetsAt) }) : "" });
