export class WordsView { static fits = () => false; }
