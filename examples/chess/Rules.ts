/**
 * The rules of chess, which are those of chess.js: from a position and a move to the position after it.
 */
import { Chess, DEFAULT_POSITION } from "chess.js"
import * as Either from "effect/Either"
import * as Option from "effect/Option"

/** A move in standard notation, and the position after it. */
export interface Move {
  readonly san: string
  readonly fen: string
}

/** The usual position at the beginning of a game. */
export const initialPosition = DEFAULT_POSITION

/** A position in full, or the reason why it is none. */
export const position = (fen: string): Either.Either<string, string> =>
  Either.try({
    try: () => new Chess(fen).fen(),
    catch: (error) => (error instanceof Error ? error.message : String(error))
  })

/** The move, if it is legal in that position. Needless disambiguation (`Nge7` where `Ne7` is enough) is accepted. */
export const play = (fen: string, san: string): Option.Option<Move> =>
  Option.liftThrowable(() => new Chess(fen, { skipValidation: true }).move(san))().pipe(
    // chess.js accepts a null move, which is not legal at a board.
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
