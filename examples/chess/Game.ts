/**
 * The domain: a game of chess as an aggregate, whose commands are decided by the rules of chess.
 */

import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"
import { GameDetails, GameEnded, GameStarted, MovePlayed, Result } from "./GameEvent.js"
import * as Projections from "./Projections.js"
import * as Rules from "./Rules.js"

// Commands. Each says which ply it is meant for, so that a repeated command is refused.

/** Sets up the board with the position of `fen`, or with the usual one. */
export class StartGame extends Schema.TaggedClass<StartGame>()("StartGame", {
  ...GameDetails.fields,
  fen: Schema.NullOr(Schema.String)
}) {}

/** Plays a move as the given ply of the game: White's first move is ply 1, Black's answer ply 2. */
export class PlayMove extends Schema.TaggedClass<PlayMove>()("PlayMove", {
  ply: Schema.Positive,
  san: Schema.NonEmptyString
}) {}

/** Ends the game after the given ply, by mate or resignation, on time or by agreement. */
export class EndGame extends Schema.TaggedClass<EndGame>()("EndGame", {
  ply: Schema.NonNegative,
  result: Result,
  termination: Schema.NullOr(Schema.String)
}) {}

// Refusals. A refused command stores nothing.

export class InvalidPosition extends Schema.TaggedError<InvalidPosition>()("InvalidPosition", {
  fen: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `no game can begin from the position ${JSON.stringify(this.fen)}: ${this.reason}`
  }
}

export class AlreadyStarted extends Schema.TaggedError<AlreadyStarted>()("AlreadyStarted", {}) {
  override get message(): string {
    return "the game has been started already"
  }
}

export class NotStarted extends Schema.TaggedError<NotStarted>()("NotStarted", {}) {
  override get message(): string {
    return "the game has not been started"
  }
}

export class GameOver extends Schema.TaggedError<GameOver>()("GameOver", { result: Result }) {
  override get message(): string {
    return `the game is over: ${this.result}`
  }
}

export class WrongPly extends Schema.TaggedError<WrongPly>()("WrongPly", {
  /** The ply that the command was made for. */
  ply: Schema.Number,
  /** The ply that it would have to be made for. */
  expected: Schema.Number
}) {
  override get message(): string {
    return `it was meant for ply ${this.ply}, and the game is at ply ${this.expected}`
  }
}

export class IllegalMove extends Schema.TaggedError<IllegalMove>()("IllegalMove", {
  san: Schema.String,
  ply: Schema.Number,
  /** The position in which the move is illegal. */
  fen: Schema.String
}) {
  override get message(): string {
    return `${JSON.stringify(this.san)} is not a legal move in the position ${this.fen}`
  }
}

/** The state that a command is decided on. */
export const GameState = Schema.Struct({
  /** Null before the start. */
  players: Schema.NullOr(Schema.Struct({ white: Schema.String, black: Schema.String })),
  fen: Schema.String,
  /** The plies played so far. */
  ply: Schema.Number,
  /** Null before the end. */
  result: Schema.NullOr(Result)
})

export type GameState = typeof GameState.Type

export const Game = Aggregate.make("Game", {
  state: GameState,
  initialState: { players: null, fen: Rules.initialPosition, ply: 0, result: null },
  commands: Schema.Union(StartGame, PlayMove, EndGame),
  events: Schema.Union(GameStarted, MovePlayed, GameEnded),
  refusals: {
    StartGame: [AlreadyStarted, InvalidPosition],
    PlayMove: [NotStarted, GameOver, WrongPly, IllegalMove],
    EndGame: [NotStarted, GameOver, WrongPly]
  },

  decide: {
    StartGame: ({ _tag, fen, ...details }, { state }) =>
      state.players !== null
        ? new AlreadyStarted()
        : Either.match(Rules.position(fen ?? Rules.initialPosition), {
            onLeft: (reason) => Effect.fail(new InvalidPosition({ fen: fen ?? Rules.initialPosition, reason })),
            onRight: (position) => Effect.succeed([new GameStarted({ ...details, fen: position })])
          }),

    PlayMove: ({ ply, san }, { state }) =>
      Effect.gen(function* () {
        yield* mustBeOpen(state)
        yield* mustBeMeantFor(state.ply + 1, ply)
        const move = yield* Option.match(Rules.play(state.fen, san), {
          onNone: () => new IllegalMove({ san, ply, fen: state.fen }),
          onSome: Effect.succeed
        })
        return [new MovePlayed({ ply, ...move })]
      }),

    EndGame: ({ ply, result, termination }, { state }) =>
      Effect.gen(function* () {
        yield* mustBeOpen(state)
        yield* mustBeMeantFor(state.ply, ply)
        return [new GameEnded({ result, termination })]
      })
  },

  evolve: {
    GameStarted: (state, { black, fen, white }) => ({
      ...state,
      players: { white: white.name, black: black.name },
      fen
    }),
    MovePlayed: (state, { fen, ply }) => ({ ...state, fen, ply }),
    GameEnded: (state, { result }) => ({ ...state, result })
  },

  projections: [Projections.Games, Projections.Players, Projections.Openings],
  snapshotEvery: 40
})

// --- internal ---

const mustBeOpen = ({ players, result }: GameState): Effect.Effect<void, NotStarted | GameOver> =>
  players === null ? new NotStarted() : result !== null ? new GameOver({ result }) : Effect.void

const mustBeMeantFor = (expected: number, ply: number): Effect.Effect<void, WrongPly> =>
  ply === expected ? Effect.void : new WrongPly({ ply, expected })
