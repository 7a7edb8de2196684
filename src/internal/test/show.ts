/**
 * Prints values for the messages of failed assertions: on one line where they are short, else a field on each line.
 */
import * as BigDecimal from "effect/BigDecimal"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"

/** Prints a value. */
export const show = (value: unknown): string => lay(shapeOf(value, 0), 0)

// --- internal ---

/** A text, or parts within brackets. */
type Shape = string | { readonly open: string; readonly parts: ReadonlyArray<Part>; readonly close: string }

interface Part {
  readonly key: string
  readonly shape: Shape
}

const maxWidth = 96
const maxDepth = 10

const shapeOf = (value: unknown, depth: number): Shape => {
  if (typeof value === "string") return JSON.stringify(value)
  if (typeof value === "bigint") return `${value}n`
  if (typeof value === "function") return `[function ${value.name}]`
  if (typeof value !== "object" || value === null) return String(value)
  const text = textOf(value)
  if (text !== undefined) return text
  if (depth >= maxDepth) return "…"
  const item = (one: unknown): Part => ({ key: "", shape: shapeOf(one, depth + 1) })
  if (Array.isArray(value)) return { open: "[", parts: value.map(item), close: "]" }
  if (value instanceof Set) return { open: "Set {", parts: [...value].map(item), close: "}" }
  if (value instanceof Map) {
    return {
      open: "Map {",
      parts: [...value].map(([key, one]) => ({
        key: `${inline(shapeOf(key, depth + 1))} => `,
        shape: item(one).shape
      })),
      close: "}"
    }
  }
  if (isEffectCollection(value)) return { open: `${value.toJSON()._id} [`, parts: [...value].map(item), close: "]" }
  const name = nameOf(value)
  return {
    open: name === "" ? "{" : `${name} {`,
    parts: Object.entries(value)
      .filter(([key, field]) => field !== undefined && !(key === "_tag" && field === name))
      .map(([key, field]) => ({ key: `${keyOf(key)}: `, shape: shapeOf(field, depth + 1) })),
    close: "}"
  }
}

/** The text of a value that is no container. */
const textOf = (value: object): string | undefined => {
  if (value instanceof Date) return `Date(${Number.isNaN(value.getTime()) ? "invalid" : value.toISOString()})`
  if (value instanceof RegExp) return String(value)
  if (DateTime.isDateTime(value)) return `DateTime(${DateTime.formatIso(value)})`
  if (Duration.isDuration(value)) return `Duration(${Duration.format(value)})`
  if (BigDecimal.isBigDecimal(value)) return `BigDecimal(${BigDecimal.format(value)})`
  if (ArrayBuffer.isView(value)) {
    const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
    return `${value.constructor.name}(${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")})`
  }
  return undefined
}

/** `Chunk`, `List`, `HashMap` and the like. */
const isEffectCollection = (
  value: object
): value is Iterable<unknown> & { readonly toJSON: () => { readonly _id: string } } =>
  Symbol.iterator in value && "toJSON" in value && typeof value.toJSON === "function" && !(value instanceof Error)

const nameOf = (value: object): string => {
  if ("_tag" in value && typeof value._tag === "string") return value._tag
  const { constructor } = value
  return typeof constructor === "function" && constructor !== Object ? constructor.name : ""
}

const keyOf = (key: string): string => (/^[\p{L}_$][\p{L}\p{N}_$]*$/u.test(key) ? key : JSON.stringify(key))

const inline = (shape: Shape): string => {
  if (typeof shape === "string") return shape
  const parts = shape.parts.map(({ key, shape }) => `${key}${inline(shape)}`).join(", ")
  if (parts === "") return `${shape.open.replace(/ \{$/, "")}${/ \{$/.test(shape.open) ? "" : shape.close}`
  return shape.close === "]" ? `${shape.open}${parts}]` : `${shape.open} ${parts} ${shape.close}`
}

const lay = (shape: Shape, indent: number): string => {
  const short = inline(shape)
  if (typeof shape === "string" || (short.length + indent <= maxWidth && !short.includes("\n"))) return short
  const margin = " ".repeat(indent + 2)
  return [
    shape.open,
    ...shape.parts.map(({ key, shape }) => `${margin}${key}${lay(shape, indent + 2)}`),
    `${" ".repeat(indent)}${shape.close}`
  ].join("\n")
}
