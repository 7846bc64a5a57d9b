// Runs the Khronos glTF validator over GLB files: one line of JSON for each, exit code 1 if any has an error or warning,
// 3 if the npm package `gltf-validator` is found neither beside this file nor in a folder of NODE_PATH.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);

function load() {
  try {
    return require("gltf-validator");
  } catch (error) {
    if (error.code !== "MODULE_NOT_FOUND") throw error;
    console.error("gltf-validator is not installed");
    process.exit(3);
  }
}

const validator = load();
let bad = 0;
for (const path of process.argv.slice(2)) {
  const report = await validator.validateBytes(new Uint8Array(readFileSync(path)), { maxIssues: 100 });
  const { numErrors, numWarnings, numInfos, messages } = report.issues;
  console.log(JSON.stringify({ path, errors: numErrors, warnings: numWarnings, infos: numInfos, messages }));
  if (numErrors + numWarnings > 0) bad = 1;
}
process.exit(bad);
