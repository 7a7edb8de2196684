/**
 * Checks that a value can be stored as JSON without loss, and writes its text. `store/storedRecord` calls it for every
 * record.
 */

/** The maximum number of issues that are reported for one input. */
export const maxIssues = 1000

/** Receives one issue, and its path from the checked value. */
export type Report = (path: ReadonlyArray<string | number>, message: string) => void

/**
 * Returns the text of an object that JSON holds without loss. For another value it reports all issues and returns
 * nothing. The text keeps the order of keys and the sign of -0.
 *
 * - Refused are `undefined`, functions, symbols, `bigint`, `NaN`, the infinities, cycles and holes in arrays.
 * - Objects that are not plain, such as a `Date`, a `Map` or a class instance, are refused, because JSON would lose a
 *   part of them.
 * - Texts and keys with NUL or half of a surrogate pair are refused, because no text of Postgres can hold them.
 *
 * Each value is read once, and the text is written from that read. So a getter that changes and a `toJSON` have no
 * effect.
 */
export const stringifyObject = (value: unknown, report: Report): string | undefined =>
  flatText(value) ?? checkedText(value, report)

/**
 * The value without its `undefined` fields, as `JSON.stringify` omits them. An `undefined` item of a list stays and is
 * refused later, because JSON would make it `null`. So does a value that can't be read or is too large.
 */
export const withoutUndefined = <A extends object>(value: A): A => {
  let left = maxSize / sizeOfValue
  const clean = (current: unknown, depth: number): unknown => {
    if (typeof current !== "object" || current === null) return current
    // The items of a list count before they are visited: a list of four billion holes takes no memory.
    left -= 1 + (Array.isArray(current) ? current.length : 0)
    if (left < 0 || depth > maxDepth) throw new TooLarge()
    if (Array.isArray(current)) {
      const cleaned = Array.from(current, (item) => clean(item, depth + 1))
      return cleaned.every((item, index) => item === current[index]) ? current : cleaned
    }
    if (!isPlain(current)) return current
    let isChanged = false
    const entries: Array<[string, unknown]> = []
    for (const key of Object.keys(current)) {
      const [before, after] = [current[key], clean(current[key], depth + 1)]
      isChanged ||= before !== after || after === undefined
      if (after !== undefined) entries.push([key, after])
    }
    return isChanged && Object.getOwnPropertySymbols(current).length === 0 ? Object.fromEntries(entries) : current
  }
  try {
    return clean(value, 0) as A
  } catch {
    return value
  }
}

/** Why a text can't be stored, or undefined. */
export const textProblem = (text: string): string | undefined =>
  text.includes("\0") ? "contains NUL" : text.isWellFormed() ? undefined : "contains half of a surrogate pair"

/** Whether a value is small enough to be traversed. A list of four billion holes, or a cycle, is not. */
export const isBounded = (value: unknown): boolean => {
  let left = maxSize / sizeOfValue
  const open: Array<unknown> = [value]
  while (open.length > 0) {
    const current = open.pop()
    if (typeof current !== "object" || current === null) continue
    const keys = Array.isArray(current) ? current.length : Object.keys(current).length
    left -= keys + 1
    if (left < 0) return false
    for (const child of Object.values(current)) open.push(child)
  }
  return true
}

/** Whether an object is plain, as an object literal of any realm: no `Date` and no class instance. */
export const isPlain = (container: object): container is Record<string, unknown> => {
  const prototype = Object.getPrototypeOf(container)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

/** The message of any thrown value. */
export const thrownMessage = (thrown: unknown): string => {
  try {
    if (thrown instanceof RangeError && thrown.message.startsWith("Maximum call stack")) return "it is nested too deep"
    return thrown instanceof Error ? String(thrown.message).slice(0, 300) : "something that is no error was thrown"
  } catch {
    return "an error was thrown that can't be read itself"
  }
}

// --- internal ---

/** The fast path for an object of few short and simple values, as most are. Returns undefined for any other value. */
const flatText = (value: unknown): string | undefined => {
  try {
    if (typeof value !== "object" || value === null || !isPlain(value)) return undefined
    let written = ""
    for (const key of Object.keys(value)) {
      const [name, text] = [keyText(key), simpleText(value[key])]
      if (name === undefined || text === undefined || written.length > maxFlat) return undefined
      written += written === "" ? name + text : `,${name}${text}`
    }
    return Object.getOwnPropertySymbols(value).length === 0 && written.length <= maxFlat ? `{${written}}` : undefined
  } catch {
    // A getter or a proxy that throws.
    return undefined
  }
}

/** The text of a value that is no container, or undefined if it can't be stored. */
const simpleText = (value: unknown): string | undefined => {
  switch (typeof value) {
    case "string":
      return textProblem(value) === undefined ? JSON.stringify(value) : undefined
    case "number":
      return Number.isFinite(value) ? scalarText(value) : undefined
    case "boolean":
      return value ? "true" : "false"
    default:
      return value === null ? "null" : undefined
  }
}

/** The text of a key and its colon, or undefined if the key can't be stored. */
const keyText = (key: string): string | undefined => {
  const known = keyTexts.get(key)
  if (known !== undefined) return known
  if (textProblem(key) !== undefined) return undefined
  const text = `${JSON.stringify(key)}:`
  if (keyTexts.size < maxKeys && key.length <= maxKeyLength) keyTexts.set(key, text)
  return text
}

/** The texts of the first keys that were written. The fields of all events of a program are few. */
const keyTexts = new Map<string, string>()

const maxKeys = 1000

const maxKeyLength = 50

/** The maximum text of the fast path, in characters. */
const maxFlat = 10_000

/** The text of a finite number. `JSON.stringify` drops the sign of -0. */
const scalarText = (value: number): string => (Object.is(value, -0) ? "-0" : String(value))

const checkedText = (value: unknown, report: Report): string | undefined => {
  let problems = 0
  let size = 0
  let written = ""
  const path: Array<string | number> = []
  const ancestors = new Set<object>()

  const refuse = (message: string): void => {
    report([...path], message)
    if (++problems >= maxIssues) throw new Enough()
  }

  const writeText = (text: string, what: string): void => {
    size += text.length
    const problem = textProblem(text)
    if (problem !== undefined) refuse(`${what} ${problem}`)
    written += JSON.stringify(text)
  }

  const write = (current: unknown): void => {
    size += sizeOfValue
    if (size > maxSize || written.length > maxSize) throw new TooLarge()
    switch (typeof current) {
      case "string":
        return writeText(current, "the text")
      case "number":
        if (!Number.isFinite(current)) return refuse(`${current} is no JSON number`)
        written += scalarText(current)
        return
      case "boolean":
        written += current
        return
      case "object":
        if (current !== null) return writeContainer(current)
        written += "null"
        return
      default:
        return refuse(`${typeof current} can't be stored as JSON`)
    }
  }

  const writeContainer = (container: object): void => {
    if (ancestors.has(container)) return refuse("a cycle: the value contains itself")
    if (path.length >= maxDepth) return refuse(`nested deeper than ${maxDepth} levels`)
    ancestors.add(container)
    if (Array.isArray(container)) {
      written += "["
      for (let index = 0; index < container.length; index++) {
        if (index > 0) written += ","
        path.push(index)
        write(container[index])
        path.pop()
      }
      written += "]"
    } else if (isPlain(container)) {
      written += "{"
      let separator = ""
      for (const key of Object.keys(container)) {
        written += separator
        separator = ","
        path.push(key)
        writeText(key, "the key")
        written += ":"
        write(container[key])
        path.pop()
      }
      written += "}"
      if (Object.getOwnPropertySymbols(container).length > 0) refuse("keys that are symbols can't be stored as JSON")
    } else {
      refuse(`an object of class ${className(container)} can't be stored as JSON: encode it first`)
    }
    ancestors.delete(container)
  }

  try {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      report([], "must be a JSON object")
      return undefined
    }
    write(value)
    if (written.length > maxSize) throw new TooLarge()
    return problems === 0 ? written : undefined
  } catch (error) {
    if (error instanceof TooLarge) report([], `larger than ${maxSize / 1_000_000} MB`)
    // A getter or a proxy that throws while it is read.
    else if (!(error instanceof Enough)) report([...path], `can't be read: ${thrownMessage(error)}`)
    return undefined
  }
}

/** Far more than a record needs, and far less than the stack of the JSON parsers here and in Postgres allows. */
const maxDepth = 1000

/**
 * The maximum text of one record, in characters. An accepted record must be readable, and a text of JavaScript ends at
 * 512 MB.
 */
const maxSize = 64_000_000

/**
 * The least that a value counts, in characters, because millions of short values take far more memory than their text.
 */
const sizeOfValue = 4

class TooLarge extends Error {}

class Enough extends Error {}

const className = (container: object): string => {
  const name: unknown = container.constructor?.name
  return typeof name === "string" && name !== "" ? name : "unknown"
}
