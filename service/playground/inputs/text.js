import { FieldsInput } from "./fields.js"; export class TextInput extends FieldsInput {}
