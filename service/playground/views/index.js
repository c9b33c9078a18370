// Which view an answer gets: by its shape, so that a new task whose Output is like a known one is shown as richly.

import { BoxesView } from "./boxes.js";
import { CaptionsView } from "./captions.js";
import { FieldsView } from "./fields.js";
import { FileView } from "./file.js";
import { LabelsView } from "./labels.js";
import { NumbersView } from "./numbers.js";
import { RegionsView } from "./regions.js";
import { SeriesView } from "./series.js";
import { SpeechView } from "./speech.js";
import { TuneView } from "./tune.js";
import { WordsView } from "./words.js";

const VIEWS = [LabelsView, BoxesView, RegionsView, CaptionsView, NumbersView, SpeechView, WordsView, SeriesView, TuneView];

export function viewFor({ answer }) {
  if (!answer) return FileView;
  return VIEWS.find((View) => View.fits(answer, answer.results?.[0] ?? {})) ?? FieldsView;
}

// Which view shows an answer that is still coming, by its first part: { name, data } of an event.
export const viewForPart = (part) => VIEWS.find((View) => View.fitsPart?.(part));
