// The documentation page: Swagger UI, with errors folded and a sample in every file chooser.

const ERROR = /^[45]/;

// An error answer is one line until it is opened: a dozen of them, with examples, would hide everything else.
function foldedErrors({ React }) {
  const e = React.createElement;
  return {
    wrapComponents: {
      response: (Original) =>
        function Response(props) {
          const [open, setOpen] = React.useState(!ERROR.test(props.code));
          if (open) return e(Original, props);
          const unfold = e(
            "button",
            { type: "button", className: "unfold", "aria-expanded": false, onClick: () => setOpen(true) },
            props.response.get("description"),
          );
          return e(
            "tr",
            { className: "response", "data-code": props.code },
            e("td", { className: "response-col_status" }, props.code),
            e("td", { className: "response-col_description" }, unfold),
          );
        },
    },
  };
}

// The first file chooser starts with the sample of its endpoint: one press of "Execute" shows an answer.
function sampleFiles({ React }) {
  return {
    wrapComponents: {
      JsonSchema_array: (Original) =>
        function Files(props) {
          const place = React.useRef(null);
          React.useEffect(() => {
            const sample = props.schema.getIn(["items", "x-sample"]);
            const chooser = place.current.querySelector("input[type=file]");
            if (sample && chooser) setTimeout(() => choose(chooser, sample)); // after Swagger UI's own first value
          }, []);
          return React.createElement("div", { ref: place }, React.createElement(Original, props));
        },
    },
  };
}

function choose(input, dataUrl) {
  const [, kind, data] = dataUrl.match(/^data:([^;]+);base64,(.*)$/);
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], `sample.${kind.split("/")[1]}`, { type: kind }));
  input.files = files.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  plugins: [foldedErrors, sampleFiles],
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
