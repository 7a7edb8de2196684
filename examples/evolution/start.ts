/**
 * The start of release 4: its layers in order. The check is below all that writes.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Aggregate, Projection, ProjectionTables, type StoreError, Subscription } from "effect-maestro"
import { Request } from "./release4.js"

/** Events are stored that no aggregate of this program reads. */
class ForgottenEvents extends Data.TaggedError("ForgottenEvents")<{
  readonly others: ReadonlyArray<StoreError.StoredType>
}> {
  override get message(): string {
    const types = this.others.map(({ kind, type, version }) => `${kind}: ${type} ${version}`)
    return `no aggregate of this program reads ${types.join(", ")}`
  }
}

/** The kinds of aggregates of other programs on this store. */
const ofOthers: ReadonlyArray<string> = ["Room"]

export const check = (aggregates: ReadonlyArray<Aggregate.Checkable>) =>
  Aggregate.check(aggregates).pipe(
    Effect.map(({ others }) => others.filter(({ kind }) => !ofOthers.includes(kind))),
    Effect.filterOrFail(
      (others) => others.length === 0,
      (others) => new ForgottenEvents({ others })
    )
  )

const layerCheck = Layer.effectDiscard(check([Request]))

const OpenRequests = Projection.makeSql({
  name: "open requests",
  of: Request,
  tables: { open_requests: (sql) => sql`create table open_requests (id text primary key, title text not null)` },
  project: {
    ComplaintOpened: ({ title }, { id }, sql) => sql`insert into open_requests (id, title) values (${id}, ${title})`,
    Closed: (_, { id }, sql) => sql`delete from open_requests where id = ${id}`
  }
})

export const Board = Subscription.fromProjections("board", [OpenRequests])

// Read it from the last line: the check is built first, then the tables, then the subscription and the aggregate.
export const layer = Layer.merge(Request.layer, Board.layer).pipe(
  Layer.provide(ProjectionTables.layer(Board)),
  Layer.provide(layerCheck)
)
