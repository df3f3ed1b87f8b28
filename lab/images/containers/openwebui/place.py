"""Move the package's folders to where upstream's image has them: /app/backend/open_webui and /app/build."""

from __future__ import annotations

import json
import shutil
import sysconfig
from importlib.metadata import version
from pathlib import Path

APP = Path("/app")

if __name__ == "__main__":
    package = Path(sysconfig.get_path("purelib")) / "open_webui"
    (APP / "backend").mkdir(exist_ok=True)
    shutil.move(package, APP / "backend" / "open_webui")
    shutil.move(APP / "backend" / "open_webui" / "frontend", APP / "build")
    (APP / "package.json").write_text(json.dumps({"name": "open-webui", "version": version("open-webui")}))
