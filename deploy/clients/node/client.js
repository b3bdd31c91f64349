// dairllm's InferenceService for Node.js. The .proto files are the only source: messages and calls are made from them at run time.

import { fileURLToPath } from "node:url";
import { dirname, join } from "node:path";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const HERE = dirname(fileURLToPath(import.meta.url));
const DEFAULT_PROTO_ROOT = join(HERE, "..", "..", "..", "protos");
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;
const CALL_TIMEOUT_MS = 10_000;

export class Client {
  /**
   * @param {string} address "host:port" of the coordinator's gRPC port
   * @param {{protoRoot?: string}} options protoRoot: the folder that holds dairllm/v1/*.proto
   */
  constructor(address, { protoRoot = DEFAULT_PROTO_ROOT } = {}) {
    const definition = protoLoader.loadSync("dairllm/v1/inference.proto", {
      includeDirs: [protoRoot],
      keepCase: true,
      longs: Number,
      enums: String,
      defaults: true,
      oneofs: true,
    });
    const { InferenceService } = grpc.loadPackageDefinition(definition).dairllm.v1;
    this.stub = new InferenceService(address, grpc.credentials.createInsecure(), {
      "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
      "grpc.keepalive_time_ms": 10_000,
      "grpc.keepalive_timeout_ms": 5_000,
      "grpc.enable_http_proxy": 0,
    });
  }

  close() {
    this.stub.close();
  }

  /** @returns {Promise<object[]>} the models that are served, as ModelInfo of inference.proto */
  async listModels() {
    return (await this.#unary("ListModels", {})).models;
  }

  /** @returns {Promise<number[]>} token ids */
  async tokenize(text, { model = "", addSpecial = false, parseSpecial = false } = {}) {
    const response = await this.#unary("Tokenize", { model, text, add_special: addSpecial, parse_special: parseSpecial });
    return response.token_ids;
  }

  /** @returns {Promise<string>} */
  async detokenize(tokenIds, { model = "" } = {}) {
    return (await this.#unary("Detokenize", { model, token_ids: tokenIds })).text;
  }

  /**
   * Generates and yields one GenerateResponse after the other; the last one has `finish`. Leaving the loop, or aborting `signal`, cancels.
   *
   * @param {object} request GenerateRequest of inference.proto: one of `text`, `token_ids: {ids}`, `chat: {messages}`; `max_tokens`,
   *   `sampling`, `stop`, `ignore_eos`
   * @param {{signal?: AbortSignal}} options
   */
  async *generate(request, { signal } = {}) {
    const call = this.stub.Generate(request);
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      for await (const response of call) {
        yield response;
      }
    } finally {
      signal?.removeEventListener("abort", cancel);
      call.cancel();
    }
  }

  #unary(method, request) {
    const deadline = Date.now() + CALL_TIMEOUT_MS;
    return new Promise((resolve, reject) => {
      this.stub[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
    });
  }
}
