// A bare client: knows the .proto files and nothing else of speakerd.
//
//   node client.js ADDRESS PROTO_DIR STANDARD CLIP CLIP_LABEL SPEECH_S16LE_16K
//
// STANDARD is a descriptor set of gRPC's own health and reflection services.
//
// Checks health, asks reflection for the services, enrols CLIP, streams SPEECH in 100 ms chunks, evicts, streams again.
// Prints one JSON object.
"use strict";
const fs = require("fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protoDir, standardPath, clipPath, label, speechPath] = process.argv.slice(2);

const options = { longs: Number, enums: String, defaults: true, oneofs: true };
const ours = loader.loadSync("speakerd/v1/node.proto", { ...options, includeDirs: [protoDir] });
const { Node } = grpc.loadPackageDefinition(ours).speakerd.v1;
const standard = loader.loadFileDescriptorSetFromBuffer(fs.readFileSync(standardPath), options);
const { Health } = grpc.loadPackageDefinition(standard).grpc.health.v1;
const { ServerReflection } = grpc.loadPackageDefinition(standard).grpc.reflection.v1alpha;

const plain = grpc.credentials.createInsecure();
const node = new Node(address, plain);

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + 60000 }, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

function listServices() {
  return new Promise((resolve, reject) => {
    const stream = new ServerReflection(address, plain).ServerReflectionInfo();
    stream.on("data", (message) => {
      resolve(message.list_services_response.service.map((service) => service.name));
      stream.end();
    });
    stream.on("error", reject);
    stream.write({ list_services: "" }); // a descriptor set keeps the names of the .proto file
  });
}

function diarize(pcm) {
  return new Promise((resolve, reject) => {
    const stream = node.Diarize();
    const seen = { turns: [], relabels: [], closed: null, opened: null };
    stream.on("data", (response) => {
      if (response.message === "opened") seen.opened = response.opened;
      if (response.message === "turns") seen.turns.push(...response.turns.turns.filter((turn) => turn.state === "STATE_FINAL"));
      if (response.message === "relabel") seen.relabels.push(response.relabel);
      if (response.message === "closed") seen.closed = response.closed;
    });
    stream.on("end", () => resolve(seen));
    stream.on("error", reject);
    stream.write({ open: { latencyMs: 2000 } });
    const chunk = 3200; // 100 ms of 16-bit samples at 16 kHz
    for (let at = 0; at < pcm.length; at += chunk) stream.write({ audio: pcm.subarray(at, at + chunk) });
    stream.write({ finish: {} });
    stream.end();
  });
}

async function main() {
  const health = await call(new Health(address, plain), "Check", { service: "" });
  const ready = await call(new Health(address, plain), "Check", { service: "speakerd.v1.Node" });
  const services = await listServices();
  const described = await call(node, "Describe", {});
  const pcm = fs.readFileSync(speechPath);
  const clip = { format: { encoding: "ENCODING_CONTAINER" }, data: fs.readFileSync(clipPath) };
  const enrolled = await call(node, "Enroll", { voice: { voiceId: "v-1" }, label, clip });
  const known = await diarize(pcm);
  const evicted = await call(node, "Evict", { voice: { voiceId: "v-1" } });
  const unknown = await diarize(pcm);
  console.log(JSON.stringify({ health: health.status, ready: ready.status, services, described, enrolled, known, evicted, unknown }));
  process.exit(0);
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
