// The search of the site takes a word after a dash as one to exclude, and refuses two dashes. So a
// flag is searched without its dashes.
document.addEventListener(
  "input",
  ({target}) => {
    if (target.matches(".md-search__input")) {
      target.value = target.value.replace(/(^|\s)-+/g, "$1");
    }
  },
  true,
);
