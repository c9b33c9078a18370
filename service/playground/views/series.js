export class SeriesView { static fits = () => false; }
