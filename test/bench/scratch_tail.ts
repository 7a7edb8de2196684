import { PerformanceObserver } from "node:perf_hooks"
import { randomUUID } from "node:crypto"
import pg from "pg"
import { startPostgres } from "../postgres.globalSetup.js"
import { openStage } from "./stage.js"
import { appendBare } from "./domain.js"
import { appendDeposit } from "./rows/append.js"
import { emmettDeposited } from "./domain.js"
type Span = { from: number; to: number; kind: string }
const spans: Span[] = []
const gcs: Span[] = []
new PerformanceObserver((list) => { for (const e of list.getEntries()) gcs.push({ from: e.startTime, to: e.startTime + e.duration, kind: String((e as any).detail?.kind) }) }).observe({ entryTypes: ["gc"] })
const orig = pg.Client.prototype.query as any
pg.Client.prototype.query = function (this: any, ...args: any[]) {
  const q = args[0]; const text = typeof q === "string" ? q : q?.text
  if (typeof text === "string" && /pg_notify|snapshot_x|pg_current_snapshot/.test(text)) {
    const from = performance.now(); const kind = text.includes("pg_notify") ? "notify" : "poll"
    const i = args.findIndex((a) => typeof a === "function")
    if (i >= 0) { const cb = args[i]; args[i] = (...r: any[]) => { spans.push({ from, to: performance.now(), kind }); cb(...r) } }
    else { const p = orig.apply(this, args); p?.finally?.(() => spans.push({ from, to: performance.now(), kind })); return p }
  }
  return orig.apply(this, args)
} as any
const seconds = Number(process.argv[2] ?? 4), rounds = Number(process.argv[3] ?? 3)
const server = await startPostgres(["-c", "log_checkpoints=off"])
const stage = await openStage(server.url, { rounds: 1, seconds: 1 }, undefined)
const contestants: Record<string, () => Promise<unknown>> = {
  ours: () => stage.ours.run(appendDeposit(stage.store, stage.clock, randomUUID())),
  floor: () => appendBare(stage.pool, randomUUID(), 1),
  emmett: () => stage.emmett.store.appendToStream<any>(randomUUID(), [emmettDeposited])
}
const all: Record<string, { at: number; took: number }[]> = {}
const loop = async (work: () => Promise<unknown>, secs: number) => { const out: { at: number; took: number }[] = []; for (const end = performance.now() + secs * 1000; ;) { const at = performance.now(); if (at > end) break; await work(); out.push({ at, took: performance.now() - at }) } return out }
for (const w of Object.values(contestants)) await loop(w, 3)
const admin = new pg.Client({ connectionString: server.url }); await admin.connect()
const vac = async () => (await admin.query("select (select sum(autovacuum_count+autoanalyze_count) from pg_stat_all_tables)::int v, (select num_timed+num_requested from pg_stat_checkpointer)::int c")).rows[0]
for (let r = 0; r < rounds; r++) for (const [n, w] of Object.entries(contestants)) { (all[n] ??= []).push(...await loop(w, seconds)) }
console.log("vacuum/checkpoints", await vac())
await new Promise((r) => setTimeout(r, 100))
const q = (xs: number[], p: number) => xs[Math.min(xs.length - 1, Math.floor(xs.length * p))]!
const overlap = (list: Span[], at: number, to: number) => list.filter((s) => s.from < to && s.to > at)
for (const [n, ops] of Object.entries(all)) {
  const t = ops.map((o) => o.took).sort((a, b) => a - b)
  console.log(n, ops.length, "p50", q(t, .5).toFixed(3), "p90", q(t, .9).toFixed(3), "p99", q(t, .99).toFixed(3), "p99.9", q(t, .999).toFixed(3), "max", t.at(-1)!.toFixed(1))
  const limit = q(t, .98)
  const c: Record<string, number> = {}; let gcms = 0
  const share = { gc: 0, notify: 0, poll: 0 }
  for (const o of ops) {
    const g = overlap(gcs, o.at, o.at + o.took), s = overlap(spans, o.at, o.at + o.took)
    if (g.length) share.gc++; if (s.some((x) => x.kind === "notify")) share.notify++; if (s.some((x) => x.kind === "poll")) share.poll++
    if (o.took <= limit) continue
    const key = [g.length ? "gc" + [...new Set(g.map((x) => x.kind))].join("/") : "", s.some((x) => x.kind === "notify") ? "notify" : "", s.some((x) => x.kind === "poll") ? "poll" : ""].filter(Boolean).join("+") || "none"
    c[key] = (c[key] ?? 0) + 1; gcms += g.reduce((a, x) => a + Math.min(x.to, o.at + o.took) - Math.max(x.from, o.at), 0)
  }
  const slow = ops.filter((o) => o.took > limit).length
  console.log("  slowest 2%:", slow, c, "gc ms within:", gcms.toFixed(1), "of", ops.filter((o) => o.took > limit).reduce((a, o) => a + o.took, 0).toFixed(1), "all ops share", Object.fromEntries(Object.entries(share).map(([k, v]) => [k, (v / ops.length).toFixed(4)])))
  const notif = ops.filter((o) => overlap(spans, o.at, o.at + o.took).some((x) => x.kind === "notify")).map((o) => o.took).sort((a, b) => a - b)
  if (notif.length) console.log("  beside a notify: n", notif.length, "p50", q(notif, .5).toFixed(3), "p90", q(notif, .9).toFixed(3))
  const gcd = ops.filter((o) => overlap(gcs, o.at, o.at + o.took).length).map((o) => o.took).sort((a, b) => a - b)
  if (gcd.length) console.log("  with gc: n", gcd.length, "p50", q(gcd, .5).toFixed(3), "p90", q(gcd, .9).toFixed(3))
}
await admin.end(); await stage.close(); await server.stop(); process.exit(0)
