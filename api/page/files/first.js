// Runs before anything is painted: whoever chose light or dark must not see the other one flash.
try {
  const theme = localStorage.getItem("farm.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Storage is closed to this page: the system's choice stands.
}
