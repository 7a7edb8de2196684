/** The text of the API report, which `api.ts` writes and compares. */
import { type Declared, printed, type Surface } from "./declarations.js"

const textOf = ({ nodes }: Declared): ReadonlyArray<string> => nodes.map(printed)

const section = (title: string, parts: ReadonlyArray<string>): string => [`# ${title}`, ...parts].join("\n\n")

/** Everything by name, so that moving a declaration to another file or another line changes nothing. */
export const reportOf = ({ index, modules, referred }: Surface): string =>
  `${[
    section("effect-maestro", [index.join("\n")]),
    ...modules.map(({ exports, name }) =>
      section(
        `effect-maestro/${name}`,
        [...exports]
          .sort((a, b) => (a.name < b.name ? -1 : 1))
          .flatMap(({ declared, name: exportedAs }) => [
            ...(exportedAs === declared.name ? [] : [`export { ${declared.name} as ${exportedAs} }`]),
            ...textOf(declared)
          ])
      )
    ),
    section("what the modules refer to", referred.flatMap(textOf))
  ].join("\n\n")}\n`
