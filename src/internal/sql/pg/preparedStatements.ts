/**
 * Prepared statements: which statements get a name, and which names a session of the server knows. `driver.ts` sends by it.
 *
 * A named statement is parsed and planned once in each session. That saves a third of the time of a short statement.
 *
 * - A name belongs to one text and to one process, so a session never runs the statement of another program under it.
 * - Only statements of the store are prepared. A session keeps the types of their parameters, and the tables that their names meant. For a
 *   statement of a projection both may change: a column gets another type, or a table is made earlier in the search path.
 * - A session may have lost its names: after `DISCARD ALL`, or behind a pooler that hands each transaction another session. The server then
 *   refuses the statement before it does anything, and the batch is sent again without names (`driver.ts`).
 * - A session that loses its names again and again gets no named statements any more.
 * - A name is parsed anew after five seconds. A session keeps the plan of a statement, and one that was made for a small table scans it when it
 *   has grown, until the server has analyzed it.
 */

/** A statement's text, and the name under which sessions keep it prepared. */
export interface PreparedText {
  readonly text: string
  readonly name?: string | undefined
}

/** Gives a text its name. */
export const prepared = (text: string): PreparedText => ({ text, name: nameOf(text) })

/** The names that one session knows, as far as this process can tell. */
export class PreparedNames {
  /** The text of each name. The driver's query looks a name up here before it parses the text. */
  readonly texts: Record<string, string> = Object.create(null)
  private readonly parsedAt = new Map<string, number>()
  private count = 0
  private reused = 0
  private lost = 0

  /** `now` returns milliseconds. */
  constructor(private readonly now: () => number = () => performance.now()) {}

  /** The name under which a text can be sent, or nothing. */
  usable({ name, text }: PreparedText): string | undefined {
    if (name === undefined || this.isGivenUp()) return undefined
    if (this.isOld(name)) this.forget([name])
    if (this.texts[name] !== undefined) return this.texts[name] === text ? name : undefined
    return this.count < maxNames ? name : undefined
  }

  knows(name: string): boolean {
    return this.texts[name] !== undefined
  }

  countReused(): void {
    this.reused++
  }

  add(name: string, text: string): void {
    if (this.texts[name] !== undefined) return
    this.count++
    this.texts[name] = text
    this.parsedAt.set(name, this.now())
  }

  /** The session may or may not know these names. They are closed before they are parsed again. */
  forget(names: ReadonlyArray<string>): void {
    for (const name of names) {
      if (this.texts[name] === undefined) continue
      delete this.texts[name]
      this.parsedAt.delete(name)
      this.count--
    }
  }

  /** The session has lost names that it knew. */
  forgetAll(): void {
    this.lost++
    this.forget(Object.keys(this.texts))
  }

  private isOld(name: string): boolean {
    const parsedAt = this.parsedAt.get(name)
    return parsedAt !== undefined && this.now() - parsedAt > maxAge
  }

  /** One loss is an accident. Several, in more than a fiftieth of the uses, are the way of this session. */
  private isGivenUp(): boolean {
    return this.lost >= 3 && this.lost * 50 > this.reused
  }
}

/**
 * Whether the server may have refused a prepared statement before it did anything. The session has lost it (26000), the session of a pooler has
 * it already (42P05), or its result has another type by now (0A000).
 */
export const isLostStatement = (error: unknown): boolean =>
  typeof error === "object" &&
  error !== null &&
  "code" in error &&
  typeof error.code === "string" &&
  lostStatement.test(error.code)

// --- internal ---

const lostStatement = /^(26000|42P05|0A000)$/

const maxNames = 200

/** In milliseconds. To parse takes a tenth of a millisecond. */
const maxAge = 5000

/** The names of texts in this process. */
const names = new Map<string, string>()

const maxTexts = 1000

const nameOf = (text: string): string => {
  const known = names.get(text)
  if (known !== undefined) return known
  const name = `effect-maestro/${processId()}/${++named}`
  if (names.size >= maxTexts) names.clear()
  names.set(text, name)
  return name
}

let named = 0
let processIdText: string | undefined

/** Random, because several processes may share the sessions of a pooler. */
const processId = (): string => {
  processIdText ??= [...crypto.getRandomValues(new Uint32Array(3))].map((part) => part.toString(36)).join("")
  return processIdText
}
