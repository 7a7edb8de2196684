/** A port for a server that is started soon. */
import { randomInt } from "node:crypto"
import { createServer } from "node:net"

/**
 * A port that no process listens on. No system gives a port below 32768 to a connection by itself, so it most likely stays free until its server
 * listens, and while that server is down.
 */
export const freePort = async (): Promise<number> => {
  for (;;) {
    const port = randomInt(10_240, 32_768)
    const isFree = await new Promise<boolean>((resolve) => {
      const probe = createServer()
      probe.once("error", () => resolve(false))
      probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)))
    })
    if (isFree) return port
  }
}
