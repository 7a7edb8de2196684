/**
 * Checks the texts that an editor and the compiler show for the aggregate in `hotel.ts`: their length, the names in
 * them, and the places of errors.
 *
 * `npx tsx test/check/hovers.ts --print` prints the texts.
 */
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import ts from "typescript"

interface Hover {
  /** The code in `hotel.ts`, up to the name under the pointer. */
  readonly at: string
  /** In characters. */
  readonly atMost: number
  readonly names: ReadonlyArray<string>
}

interface Mistake {
  /** A change of `hotel.ts` that must not compile. */
  readonly replace: string
  readonly by: string
  /** In characters, for the first two lines of the message, because an editor shows only these. */
  readonly atMost: number
  readonly names: ReadonlyArray<string>
}

const root = fileURLToPath(new URL("../..", import.meta.url))
const hotel = path.join(root, "test/check/hotel.ts")

/** The state alone has 280 characters. */
const hovers: ReadonlyArray<Hover> = [
  {
    at: "evaluate = Room.evaluate",
    atMost: 700,
    // The signature with `reply` is the first one. A call shows the signature that it has.
    names: ["<K extends Book | CheckIn", "Acknowledged", "Aggregate.Failure"]
  },
  {
    at: "booking = Room.evaluate",
    atMost: 630,
    names: [
      "<Book>(id: string, command: Book, options?:",
      "Evaluated<{",
      "Booked | CheckedIn",
      "AlreadyBooked | Aggregate.Failure"
    ]
  },
  { at: "const booking", atMost: 550, names: ["AlreadyBooked | Aggregate.Failure", 'Instance<"Room">'] },
  {
    at: "const checkingIn",
    atMost: 600,
    names: ["NotBooked", "Occupied", "NotClean", "UnexpectedSequence", "Aggregate.Failure"]
  },
  { at: "const fromOutside", atMost: 550, names: [", Occupied | Aggregate.Failure"] },
  { at: "fetching = Room.fetch", atMost: 500, names: ["fetch: (id: string)"] }
]

const mistakes: ReadonlyArray<Mistake> = [
  { replace: 'status: "closed", guest', by: 'status: "shut", guest', atMost: 130, names: ['"shut"', '"closed"'] },
  { replace: 'status: "booked", guest', by: 'status: "taken", guest', atMost: 130, names: ['"taken"', '"booked"'] },
  {
    replace: "Cleaned: (state) => ({ ...state, clean: true }),",
    by: "",
    atMost: 700,
    names: ["Property 'Cleaned' is missing"]
  },
  {
    replace: "Clean: (_, { state }) => (state.clean ? Effect.succeed([]) : Effect.succeed([new Cleaned()])),",
    by: "",
    // The type of the handlers comes first.
    atMost: 1400,
    names: ["Property 'Clean' is missing"]
  },
  { replace: "new Cancelled({ reason })", by: "reason", atMost: 500, names: ["string[]", "Cancelled"] },
  { replace: "CheckOut: [NotBooked],", by: "", atMost: 360, names: ["Type 'NotBooked' is not assignable"] },
  {
    replace: "decide: {",
    by: "decide: { Demolish: () => Effect.succeed([]),",
    atMost: 300,
    names: ["Demolish is the tag of no command"]
  },
  {
    replace: "Close: [Occupied]",
    by: "Close: [NotClean]",
    atMost: 380,
    names: ["Type 'Occupied' is not assignable", "NotClean"]
  }
]

const parsed = ts.getParsedCommandLineOfConfigFile(
  path.join(root, "tsconfig.json"),
  {},
  {
    ...ts.sys,
    onUnRecoverableConfigFileDiagnostic: (diagnostic) => {
      throw new Error(ts.flattenDiagnosticMessageText(diagnostic.messageText, "\n"))
    }
  }
)
if (parsed === undefined) throw new Error("cannot read tsconfig.json")

const source = ts.sys.readFile(hotel) ?? ""
let current = source
let version = 1

const service = ts.createLanguageService({
  getCompilationSettings: () => ({ ...parsed.options, plugins: [] }),
  getScriptFileNames: () => [hotel],
  getScriptVersion: (name) => (name === hotel ? String(version) : "1"),
  getScriptSnapshot: (name) => {
    const text = name === hotel ? current : ts.sys.readFile(name)
    return text === undefined ? undefined : ts.ScriptSnapshot.fromString(text)
  },
  getCurrentDirectory: () => root,
  getDefaultLibFileName: ts.getDefaultLibFilePath,
  fileExists: ts.sys.fileExists,
  readFile: ts.sys.readFile,
  readDirectory: ts.sys.readDirectory,
  directoryExists: ts.sys.directoryExists,
  getDirectories: ts.sys.getDirectories
})

/** Returns the compiler's error in a text, and its position. */
const errorOf = (text: string): { readonly message: string; readonly start: number } => {
  current = text
  version++
  const [error, ...others] = [...service.getSyntacticDiagnostics(hotel), ...service.getSemanticDiagnostics(hotel)]
  return {
    message: others.length > 0 ? "more errors than one" : ts.flattenDiagnosticMessageText(error?.messageText, "\n"),
    start: error?.start ?? -1
  }
}

const hoverAt = (code: string): string => {
  const start = source.indexOf(code)
  if (start < 0) throw new Error(`${code} is not in ${hotel}`)
  const info = service.getQuickInfoAtPosition(hotel, start + code.length - 1)
  return ts.displayPartsToString(info?.displayParts)
}

const problems: Array<string> = []

const check = (what: string, text: string, { atMost, names }: Pick<Hover, "atMost" | "names">): void => {
  if (process.argv.includes("--print")) console.log(`--- ${what}: ${text.length} characters\n${text}\n`)
  if (text.length > atMost) problems.push(`${what}: ${text.length} characters, and at most ${atMost} are readable`)
  for (const name of names) if (!text.includes(name)) problems.push(`${what}: ${name} is missing`)
}

for (const hover of hovers) {
  const text = hoverAt(hover.at)
  check(hover.at, text, hover)
  if (text.split("readonly status").length > 2) problems.push(`${hover.at}: the state is shown more than once`)
}

for (const mistake of mistakes) {
  const at = source.indexOf(mistake.replace)
  if (at < 0) throw new Error(`${mistake.replace} is not in ${hotel}`)
  const what = `${mistake.replace} -> ${mistake.by}`
  const { message, start } = errorOf(source.replace(mistake.replace, mistake.by))
  check(what, message.split("\n").slice(0, 2).join("\n"), mistake)
  if (start < source.indexOf("decide: {")) problems.push(`${what}: the error is not at a handler`)
}

for (const problem of problems) console.error(problem)
console.log(`${hovers.length} hovers, ${mistakes.length} errors of the compiler: ${problems.length} problems`)
process.exitCode = problems.length === 0 ? 0 : 1
