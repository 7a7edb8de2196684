import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"

const root = fileURLToPath(new URL("..", import.meta.url))

export default defineConfig({
  root,
  resolve: {
    alias: [
      { find: /^effect-maestro$/, replacement: `${root}src/index.ts` },
      { find: /^effect-maestro\/(.+)$/, replacement: `${root}src/$1.ts` }
    ]
  },
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: "test/postgres.globalSetup.ts",
    pool: "forks",
    reporters: "default",
    testTimeout: 60_000,
    hookTimeout: 60_000
  }
})
