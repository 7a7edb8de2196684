/** Aggregates whose handlers evaluate commands of others, for the tests of what events follow from. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, type Event, EventFeed, Projection } from "effect-maestro"

export class Done extends Schema.TaggedClass<Done>()("Done", { text: Schema.String }) {}

/** Stores so many events. */
export class Do extends Schema.TaggedClass<Do>()("Do", { times: Schema.Int }) {}

/** Its handler waits for a macrotask, and stores an event. */
export class DoLater extends Schema.TaggedClass<DoLater>()("DoLater", {}) {}

/** Its handler evaluates `Do` on the leaves, and stores an event. */
export class Ask extends Schema.TaggedClass<Ask>()("Ask", {
  ids: Schema.Array(Schema.String),
  concurrency: Schema.optionalWith(Schema.Int, { default: () => 1 })
}) {}

/** Its handler evaluates `Ask` on the branch, and stores an event. */
export class AskThrough extends Schema.TaggedClass<AskThrough>()("AskThrough", {
  branch: Schema.String,
  id: Schema.String
}) {}

const done = (count: number) =>
  Effect.succeed(Array.from({ length: count }, (_, index) => new Done({ text: `${index}` })))

const options = {
  state: Schema.Number,
  initialState: 0,
  events: Done,
  evolve: { Done: (count: number) => count + 1 }
}

export const leaf = {
  ...options,
  commands: Schema.Union(Do, DoLater),
  decide: {
    Do: ({ times }: Do) => done(times),
    DoLater: () =>
      Effect.zipRight(
        Effect.promise(() => new Promise(setImmediate)),
        done(1)
      )
  }
}

export const Leaf = Aggregate.make("Leaf", leaf)

export const Branch = Aggregate.make("Branch", {
  ...options,
  commands: Ask,
  decide: {
    Ask: ({ concurrency, ids }) =>
      Effect.zipRight(
        Effect.forEach(ids, (id) => Leaf.evaluate(id, new Do({ times: 2 })), { concurrency }),
        done(1)
      )
  }
})

export const Tree = Aggregate.make("Tree", {
  ...options,
  commands: AskThrough,
  decide: {
    AskThrough: ({ branch, id }) => Effect.zipRight(Branch.evaluate(branch, new Ask({ ids: [id] })), done(1))
  }
})

export const layer = Tree.layer.pipe(Layer.provideMerge(Branch.layer), Layer.provideMerge(Leaf.layer))

/** The events of a stream, as the feed shows them. */
export const eventsOf = (aggregateId: string) =>
  Effect.map(EventFeed.read({ limit: 10_000 }), ({ events }) =>
    events.filter((event) => event.aggregateId === aggregateId)
  )

/** The first event of a stream. */
export const firstOf = (aggregateId: string) =>
  Effect.flatMap(eventsOf(aggregateId), ([event]) =>
    event === undefined ? Effect.dieMessage(`no event of ${aggregateId}`) : Effect.succeed(event)
  )

export const cause = ({ causationId, correlationId }: Pick<Event.Event, "causationId" | "correlationId">) => ({
  causationId,
  correlationId
})

export const causes = (events: ReadonlyArray<Event.Event>) => events.map(cause)

/** The cause of an event that follows from this one. */
export const followerOf = ({ correlationId, timestamp }: Event.Event) => ({ causationId: timestamp, correlationId })

/** An aggregate with a strong projection that evaluates a command on a leaf for each event. */
export const projectingLeaf = (ran: Array<string>) =>
  Aggregate.make("ProjectedLeaf", {
    ...leaf,
    projections: [
      Projection.make({
        name: "follow",
        events: Done,
        project: {
          Done: (_, envelope) => {
            ran.push(envelope.timestamp)
            return Leaf.evaluate(`${envelope.id}-${envelope.sequence}`, new Do({ times: 1 }))
          }
        }
      })
    ]
  })
