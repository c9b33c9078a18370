import { FieldsInput } from "./fields.js"; export class SoundInput extends FieldsInput {}
