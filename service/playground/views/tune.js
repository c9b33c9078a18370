export class TuneView { static fits = () => false; }
