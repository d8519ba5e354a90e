// Compiled and run by tests/serve/http/test_generated_clients.py, with the types of `/openapi.json`.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

declare const process: { argv: string[] };
const [url = "", key = ""] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url, headers: { "X-Api-Key": key } });

const ranked = await client.POST("/v1/rank", {
  params: { header: { "X-Deadline-Ms": 1000, "X-Request-Id": "from-ts" } },
  body: { viewer: "ann", candidates: ["a", { candidate: "b", fields: { price: 9 } }], explain: true },
});
// The compiler knows from the status and from the tag which fields there are.
const order: string[] = ranked.data?.ranking.map((one) => one.candidate) ?? [];
const join = (id: string, kind: "join" | "click"): components["schemas"]["Event"] => {
  return { type: "event", id, viewer: "ann", candidate: "a", kind };
};
const records = [join("ts-1", "join"), { type: "viewer", id: "", fields: { language: "fr" } } as const];
const taken = await client.POST("/v1/events", { body: { records } });
const wrong = await client.POST("/v1/rank", { body: { viewer: "ann", candidates: ["a", "b", "a"] } });
const stranger = createClient<paths>({ baseUrl: url });
const unauthorized = await stranger.GET("/v1/model");

console.log(
  JSON.stringify({
    ranked: [ranked.response.status, ranked.data?.request_id, order],
    taken: [taken.response.status, taken.data?.accepted, taken.data?.rejected.map((one) => one.pointer)],
    wrong: [wrong.response.status, wrong.error?.pointer],
    unauthorized: [unauthorized.response.status, unauthorized.error?.title],
  }),
);
