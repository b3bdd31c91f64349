#!/usr/bin/env node
// node cli.js HOST:PORT models | tokenize TEXT | generate TEXT [MAX_TOKENS] | chat TEXT [MAX_TOKENS]
// Prints JSON for `models` and `tokenize`; text as it comes for `generate` and `chat`, and their finish as JSON on stderr.

import { Client } from "./client.js";

const USAGE = "usage: node cli.js HOST:PORT models | tokenize TEXT | generate TEXT [MAX_TOKENS] | chat TEXT [MAX_TOKENS]";

// A reader that has seen enough, as in `| head`, ends the program and with it the generation; a model's escape sequences are only shown.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error) => process.exit(error.code === "EPIPE" ? 1 : 2));
}

const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;
const escaped = (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`;
const shown = (text) => (process.stdout.isTTY ? text.replace(CONTROL, escaped) : text);

async function print(client, request) {
  for await (const response of client.generate(request)) {
    process.stdout.write(shown(response.text));
    if (response.finish) {
      process.stderr.write(JSON.stringify(response.finish) + "\n");
    }
  }
  process.stdout.write("\n");
}

async function run(client, command, text, maxTokens) {
  const limits = { max_tokens: Number(maxTokens ?? 64), sampling: { temperature: 0 } };
  switch (command) {
    case "models":
      console.log(JSON.stringify(await client.listModels()));
      return 0;
    case "tokenize":
      console.log(JSON.stringify(await client.tokenize(text)));
      return 0;
    case "generate":
      await print(client, { text, ...limits });
      return 0;
    case "chat":
      await print(client, { chat: { messages: [{ role: "user", content: text }] }, ...limits });
      return 0;
    default:
      console.error(USAGE);
      return 2;
  }
}

const [address, command, text, maxTokens] = process.argv.slice(2);
if (!address || !command || (command !== "models" && text === undefined)) {
  console.error(USAGE);
  process.exitCode = 2;
} else {
  const client = new Client(address);
  try {
    process.exitCode = await run(client, command, text, maxTokens);
  } catch (error) {
    console.error(`dairllm: ${error.details ?? error.message}`);
    process.exitCode = 1;
  } finally {
    client.close();
  }
}
