// Classify raw photographs with the model beside this file: node example.js photo.ppm ...
// Needs: npm install onnxruntime-web. PPM files hold plain pixels; `magick photo.jpg -auto-orient photo.ppm` makes one.
const fs = require('fs'), path = require('path');

async function main(files) {
  const ort = await import('onnxruntime-web/wasm');
  const about = JSON.parse(fs.readFileSync(path.join(__dirname, 'model.json'), 'utf8'));
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(fs.readFileSync(path.join(__dirname, 'model.onnx')));
  for (const file of files) {
    const bytes = fs.readFileSync(file), head = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.subarray(0, 64).toString('latin1'));
    const [width, height] = [Number(head[1]), Number(head[2])], pixels = new Uint8Array(bytes.subarray(head[0].length));
    const found = await session.run({photos: new ort.Tensor('uint8', pixels, [1, height, width, 3])});
    const p = found.probabilities.data, order = about.classes.map((_, k) => k).sort((a, b) => p[b] - p[a]);
    for (const k of order) console.log(`${file}\t${about.classes[k]}\t${p[k].toFixed(4)}`);
    if (found.held) console.log(`${file}\tcould be: ${about.classes.filter((_, k) => found.held.data[k]).join(', ')}`);
    if (found.strangeness && found.strangeness.data[0] > 1) console.log(`${file}\tnot a photograph of this kind`);
  }
}
main(process.argv.slice(2));
