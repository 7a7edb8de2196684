/** The helper that starts Postgres as root finds the folder that keeps the user postgres from its programs. */
import { chmod, mkdir, mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, it } from "vitest"
import { adviceFor, closedFolder } from "./postgres.globalSetup.js"

it("a folder that only its owner may enter is named, with what to do", async () => {
  const root = await mkdtemp(join(tmpdir(), "effect-maestro-"))
  try {
    await chmod(root, 0o755)
    const home = join(root, "home")
    await mkdir(join(home, "project"), { recursive: true })
    const file = join(home, "project", "initdb")
    expect(closedFolder(file)).toBeUndefined()
    await chmod(join(home, "project"), 0o750)
    expect(closedFolder(file)).toBe(join(home, "project"))
    await chmod(home, 0o700)
    expect(closedFolder(file)).toBe(home)
    expect(adviceFor(home)).toContain(`chmod o+x ${home}`)
    expect(adviceFor(home)).toContain("DATABASE_URL")
  } finally {
    await rm(root, { recursive: true, force: true })
  }
})
