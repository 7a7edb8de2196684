/**
 * The events of a game of chess. States and tables are derived from them.
 */
import * as Schema from "effect/Schema"

/** The result of a game that has ended. */
export const Result = Schema.Literal("1-0", "1/2-1/2", "0-1")

export type Result = typeof Result.Type

export const Player = Schema.Struct({
  name: Schema.String,
  rating: Schema.NullOr(Schema.Int)
})

/** The players, place and time. Null stands for what is unknown. */
export const GameDetails = Schema.Struct({
  white: Player,
  black: Player,
  event: Schema.NullOr(Schema.String),
  site: Schema.NullOr(Schema.String),
  /** In the form of PGN, `2012.12.31 23:01:03`, so that a later time is a greater text. */
  playedAt: Schema.NullOr(Schema.String),
  timeControl: Schema.NullOr(Schema.String),
  eco: Schema.NullOr(Schema.String),
  opening: Schema.NullOr(Schema.String)
})

export class GameStarted extends Schema.TaggedClass<GameStarted>()("GameStarted", {
  ...GameDetails.fields,
  /** The position on the board. */
  fen: Schema.String
}) {}

export class MovePlayed extends Schema.TaggedClass<MovePlayed>()("MovePlayed", {
  ply: Schema.Number,
  san: Schema.String,
  /** The position after the move, so that a state is loaded without the rules. */
  fen: Schema.String
}) {}

export class GameEnded extends Schema.TaggedClass<GameEnded>()("GameEnded", {
  result: Result,
  termination: Schema.NullOr(Schema.String)
}) {}
