// Which input a task gets: by the kind of its files, or by the fields of its body.
//
// An input has: `element`, `handles` (fields that are not in the form), `request(column, fields)` (a request for `api.js`,
// or null where there is nothing to ask), `useSample(sample)`; and may have `answered(column, request, answer)`,
// `context(column)` (what its views want to know), `inParts(request)` (whether an answer part by part is worth while),
// `buttons`, `live` (it asks by itself), `carriesState`, `leave()`.

import { FileInput } from "./file.js";
import { FieldsInput } from "./fields.js";
import { PictureInput } from "./picture.js";
import { SeriesInput } from "./series.js";
import { SoundInput } from "./sound.js";
import { TextInput } from "./text.js";

export function inputFor(task, panel) {
  if (task.takesFiles) {
    const Input = { image: PictureInput, audio: SoundInput }[task.family] ?? FileInput;
    return new Input(task, panel);
  }
  const has = (name, type) => task.fields.some((field) => field.name === name && field.type === type);
  if (has("text", "string") && has("state", "string")) return new TextInput(task, panel);
  if (has("values", "array") && has("state", "string")) return new SeriesInput(task, panel);
  return new FieldsInput(task, panel);
}
