/**
 * The model of a log's size: bytes on disk and bytes of WAL for an event, as functions of the bytes of its body. Two measured logs give it,
 * and all others are compared with it.
 */

/** `constant + perBodyByte × bytes of the body`. */
export interface Line {
  readonly constant: number
  readonly perBodyByte: number
}

/** What was measured for events with bodies of so many bytes. */
export interface Point {
  readonly body: number
  readonly bytes: number
}

/** A measured figure beside that of the model. */
export interface Compared {
  readonly what: string
  readonly measured: number
  readonly reckoned: number
  /** How much the model is above what was measured: 0.1 is ten per cent. */
  readonly off: number
}

/** The greatest difference between the model and a measured figure. */
export const tolerance = 0.1

export const lineThrough = (a: Point, b: Point): Line => {
  const perBodyByte = (b.bytes - a.bytes) / (b.body - a.body)
  return { constant: a.bytes - perBodyByte * a.body, perBodyByte }
}

export const reckon = ({ constant, perBodyByte }: Line, body: number): number => constant + perBodyByte * body

export const compare = (what: string, line: Line, { body, bytes }: Point): Compared => {
  const reckoned = reckon(line, body)
  return { what, measured: bytes, reckoned, off: reckoned / bytes - 1 }
}

/** The figures that the model is wrong about. */
export const beyond = (compared: ReadonlyArray<Compared>): ReadonlyArray<Compared> =>
  compared.filter(({ off }) => !(Math.abs(off) <= tolerance))

/** The formula in words, such as `522 + 1.08 × body`. */
export const formula = ({ constant, perBodyByte }: Line): string =>
  `${constant.toFixed(0)} + ${perBodyByte.toFixed(2)} × body`
