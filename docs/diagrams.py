"""Draw the Mermaid diagrams of README.md and docs/ into docs/images, for the site of `make docs`.

GitHub draws them itself; the site would need a script from another host.
"""

import base64
import hashlib
import subprocess
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from pages import DIAGRAM, ROOT, name_of
from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = ROOT / "docs" / "images"
MERMAID = "mermaid@11.17.2"
SHA512 = "V6K3C8EBdEsPFZXSKMJe6ppQOENxuHARr9GvHX4hh47lAbhMRD9qf4oEK7LoaRQxULMa80/qt5gHO73aCleBBg=="
THEMES = {"light": "neutral", "dark": "dark"}
DRAW = """async ([source, theme]) => {
  mermaid.initialize({startOnLoad: false, theme, fontFamily: 'sans-serif'});
  document.body.innerHTML = (await mermaid.render('diagram', source)).svg;
}"""


def sources() -> list[str]:
    """All diagrams of the documentation."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [source for page in pages for source in DIAGRAM.findall(page.read_text("utf-8"))]


def main() -> None:
    """Bring Mermaid from the npm registry, draw each diagram, remove those of earlier words."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pack = ["npm", "pack", "--silent", MERMAID]
        packed = Path(folder, subprocess.check_output(pack, cwd=folder, text=True).strip())
        digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
        assert digest == SHA512, f"{MERMAID} has other bytes: {digest}"
        with tarfile.open(packed) as archive:
            archive.extract("package/dist/mermaid.min.js", folder, filter="data")
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page(device_scale_factor=2)
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(path=Path(folder, "package/dist/mermaid.min.js"))
        drawn = set()
        for source in sources():
            for scheme, theme in THEMES.items():
                path = IMAGES / name_of(source, scheme)
                page.evaluate(DRAW, [source, theme])
                drawing = page.locator("svg").screenshot(omit_background=True)
                Image.open(BytesIO(drawing)).save(path, quality=80, method=6)
                drawn.add(path)
                print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
        browser.close()
    for earlier in set(IMAGES.glob("diagram-*.webp")) - drawn:
        earlier.unlink()


if __name__ == "__main__":
    main()
