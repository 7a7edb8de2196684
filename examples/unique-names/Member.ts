/**
 * Members of a club, whose names are unique: a table with a constraint is part of each commit.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, Timestamp } from "effect-maestro"

const Name = Schema.NonEmptyTrimmedString.pipe(Schema.maxLength(30))

class Joined extends Schema.TaggedClass<Joined>()("Joined", { name: Name }) {}
class Renamed extends Schema.TaggedClass<Renamed>()("Renamed", { name: Name }) {}
class Left extends Schema.TaggedClass<Left>()("Left", {}) {}

export class Join extends Schema.TaggedClass<Join>()("Join", { name: Name }) {}
export class Rename extends Schema.TaggedClass<Rename>()("Rename", { name: Name }) {}
export class Leave extends Schema.TaggedClass<Leave>()("Leave", {}) {}

export class NameTaken extends Schema.TaggedError<NameTaken>()("NameTaken", { name: Schema.String }) {}
export class NoMember extends Schema.TaggedError<NoMember>()("NoMember", {}) {}
export class AlreadyMember extends Schema.TaggedError<AlreadyMember>()("AlreadyMember", { name: Schema.String }) {}

const MemberEvent = Schema.Union(Joined, Renamed, Left)

/** One row for each name in use. Two names that differ in their case are one. */
const Names = Projection.makeSql({
  name: "names",
  events: MemberEvent,
  tables: {
    names: (sql) => [
      sql`create table names (member text constraint names_member primary key, name text not null, since timestamptz not null)`,
      sql`create unique index names_unique on names (lower(name))`
    ]
  },
  project: {
    Joined: ({ name }, { id, timestamp }, sql) =>
      sql`insert into names (member, name, since) values (${id}, ${name}, ${new Date(Timestamp.toMillis(timestamp))})`,
    Renamed: ({ name }, { id, timestamp }, sql) =>
      sql`update names set name = ${name}, since = ${new Date(Timestamp.toMillis(timestamp))} where member = ${id}`,
    Left: (_, { id }, sql) => sql`delete from names where member = ${id}`
  },
  onConstraint: { names_unique: (event) => (event._tag === "Left" ? undefined : new NameTaken({ name: event.name })) }
})

export const Member = Aggregate.make("Member", {
  state: Schema.NullOr(Schema.String),
  initialState: null,
  events: MemberEvent,
  commands: Schema.Union(Join, Rename, Leave),
  refusals: { Join: [AlreadyMember, NameTaken], Rename: [NoMember, NameTaken], Leave: [NoMember] },
  decide: {
    Join: ({ name }, { state }) =>
      state === null ? Effect.succeed([new Joined({ name })]) : new AlreadyMember({ name: state }),
    Rename: ({ name }, { state }) => {
      if (state === null) return new NoMember()
      return Effect.succeed(state === name ? [] : [new Renamed({ name })])
    },
    Leave: (_, { state }) => (state === null ? new NoMember() : Effect.succeed([new Left()]))
  },
  evolve: {
    Joined: (_, { name }) => name,
    Renamed: (_, { name }) => name,
    Left: () => null
  },
  projections: [Names]
})
