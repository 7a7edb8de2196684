/**
 * The rules of chess, which are those of chess.js: from a position and a move to the position after it.
 */
import { Chess, DEFAULT_POSITION } from "chess.js"
import * as Either from "effect/Either"
import * as Option from "effect/Option"

/** A move as the rules write it, and the position that it leads to. */
export interface Move {
  readonly san: string
  readonly fen: string
}

/** The position that a game begins with if nothing else is said. */
export const initialPosition = DEFAULT_POSITION

/** A position in full, or what is wrong with it. */
export const position = (fen: string): Either.Either<string, string> =>
  Either.try({
    try: () => new Chess(fen).fen(),
    catch: (error) => (error instanceof Error ? error.message : String(error))
  })

/** The move, if it is legal in that position. Needless disambiguation (`Nge7` where `Ne7` would do) is forgiven. */
export const play = (fen: string, san: string): Option.Option<Move> =>
  Option.liftThrowable(() => new Chess(fen, { skipValidation: true }).move(san))().pipe(
    // chess.js knows a null move, by which analysts pass; nobody at a board may.
    Option.filter((move) => move.san !== "--"),
    Option.map((move) => ({ san: move.san, fen: move.after }))
  )

/** The position after the first moves of a game, if all of them are legal. */
export const positionAfter = (fen: string, sans: ReadonlyArray<string>): Option.Option<string> =>
  sans.reduce(
    (before, san) => Option.flatMap(before, (current) => Option.map(play(current, san), (move) => move.fen)),
    Option.some(fen)
  )

/** The board as text, White below. */
export const board = (fen: string): string => new Chess(fen, { skipValidation: true }).ascii()
