import { FieldsInput } from "./fields.js"; export class SeriesInput extends FieldsInput {}
