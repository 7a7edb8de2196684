/**
 * What happens in a game of chess: the facts that are stored, and that everything else is made from.
 */
import * as Schema from "effect/Schema"

/** How a game can end. One that goes on has no result. */
export const Result = Schema.Literal("1-0", "1/2-1/2", "0-1")

export type Result = typeof Result.Type

export const Player = Schema.Struct({
  name: Schema.String,
  rating: Schema.NullOr(Schema.Int)
})

/** Who plays, where and when; null is what nobody wrote down. */
export const GameDetails = Schema.Struct({
  white: Player,
  black: Player,
  event: Schema.NullOr(Schema.String),
  site: Schema.NullOr(Schema.String),
  /** As PGN writes it, `2012.12.31 23:01:03`, so that later is greater. */
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
  /** The position after the move: a state is read back without knowing the rules. */
  fen: Schema.String
}) {}

export class GameEnded extends Schema.TaggedClass<GameEnded>()("GameEnded", {
  result: Result,
  termination: Schema.NullOr(Schema.String)
}) {}
