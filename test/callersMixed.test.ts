/** Commands with and without projections, refusals and failures meet on one aggregate, and each caller has its own outcome. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate, type Event, MemoryStore, Projection, StoreAdapter } from "effect-maestro"
import { asCaller, callerOf, describe, onPglite, onPostgres, surroundings } from "./callers.js"

class Said extends Schema.TaggedClass<Said>()("Said", { caller: Schema.String }) {}
class Whispered extends Schema.TaggedClass<Whispered>()("Whispered", { caller: Schema.String }) {}

const Kind = Schema.Literal("said", "whispered", "both", "nothing", "refused", "failed")

class Speak extends Schema.TaggedClass<Speak>()("Speak", {
  caller: Schema.String,
  kind: Kind,
  yields: Schema.Number
}) {}

class Refused extends Data.TaggedError("Refused")<{ readonly caller: string }> {}
class Failed extends Data.TaggedError("Failed")<{ readonly caller: string }> {}

/** The aggregate, with a projection that handles what is said, and not what is whispered. */
const makeTalk = <E>(project: (event: Event.Envelope) => Effect.Effect<void, E>) => {
  const projection = Projection.make({
    name: "said",
    events: Said,
    project: { Said: (_said, event) => project(event) }
  })
  return Aggregate.make("Talk", {
    state: Schema.Number,
    initialState: 0,
    events: Schema.Union(Said, Whispered),
    commands: Speak,
    decide: {
      Speak: ({ caller, kind, yields }: Speak) =>
        Effect.zipRight(
          Effect.repeatN(Effect.yieldNow(), yields),
          kind === "refused"
            ? new Refused({ caller })
            : Effect.succeed([
                ...(kind === "said" || kind === "both" || kind === "failed" ? [new Said({ caller })] : []),
                ...(kind === "whispered" || kind === "both" ? [new Whispered({ caller })] : [])
              ])
        )
    },
    evolve: { Said: (count: number) => count + 1, Whispered: (count: number) => count + 1 },
    projections: [projection],
    retry: Schedule.recurs(50)
  })
}

const outcomeOf = ({ caller, kind }: Speak): string =>
  kind === "refused" || kind === "failed"
    ? `fails with ${kind === "refused" ? "Refused" : "Failed"} ${caller}`
    : "succeeds"

const eventsOf = ({ caller, kind }: Speak): ReadonlyArray<string> => {
  const [said, whispered] = [`${caller} Said`, `${caller} Whispered`]
  return kind === "said" ? [said] : kind === "whispered" ? [whispered] : kind === "both" ? [said, whispered] : []
}

const stores: Readonly<Record<string, Layer.Layer<StoreAdapter.StoreAdapter>>> = {
  MemoryStore: MemoryStore.layer,
  PGlite: onPglite,
  Postgres: onPostgres
}

for (const [name, layer] of Object.entries(stores)) {
  const seed = Math.floor(Math.random() * 2 ** 31)
  it.layer(layer, { timeout: 60_000 })(name, (it) => {
    it.scoped(`each of 96 commands on one aggregate has its own outcome and context (seed ${seed})`, () =>
      Effect.gen(function* () {
        const commands = yield* Effect.forEach(Arr.range(1, 96), (n) =>
          Effect.gen(function* () {
            const kind = Kind.literals[yield* Random.nextIntBetween(0, Kind.literals.length)] ?? "said"
            return new Speak({ caller: `caller ${n}`, kind, yields: yield* Random.nextIntBetween(0, 4) })
          })
        )
        const kinds = new Map(commands.map(({ caller, kind }) => [caller, kind]))
        const seen: Array<string> = []
        const wrong: Array<string> = []
        const Reader = makeTalk(() => Effect.void)
        const reader = yield* Layer.build(Layer.fresh(Reader.layer))
        const Talk = makeTalk((event) =>
          Effect.gen(function* () {
            const caller = callerOf(event)
            const around = Object.values(yield* surroundings)
            const count = yield* Effect.provide(Reader.fetch(event.id), reader)
            const own = kinds.get(caller) === "both" ? event.sequence + 1 : event.sequence
            if (around.some((value) => value !== caller)) wrong.push(`${caller}: ${around}`)
            if (count !== own) wrong.push(`${caller}: ${count} events instead of ${own}`)
            if (kinds.get(caller) === "failed") return yield* new Failed({ caller })
            seen.push(`${caller} Said`)
          })
        )
        const node = yield* Layer.build(Layer.fresh(Talk.layer))
        const id = crypto.randomUUID()
        const exits = yield* Effect.forEach(
          commands,
          (command) => Effect.exit(asCaller(command.caller, Effect.provide(Talk.evaluate(id, command), node))),
          { concurrency: "unbounded" }
        )
        expect(exits.map(describe)).toEqual(commands.map(outcomeOf))
        expect(wrong).toEqual([])
        const events = yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
          store.getEvents(Talk.streamId(id), 1)
        )
        const stored = events.map((event) => `${callerOf(event)} ${event.type}`)
        expect(stored.toSorted()).toEqual(commands.flatMap(eventsOf).sort())
        expect(seen).toEqual(stored.filter((line) => line.endsWith("Said")))
      }).pipe(Effect.withRandom(Random.make(seed)))
    )
  })
}
