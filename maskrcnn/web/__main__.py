"""Try a model in the browser: `python -m maskrcnn.web ckpt=best.ckpt`."""

import errno
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from maskrcnn.config import Config, command
from maskrcnn.errors import UserError
from maskrcnn.predict.predictor import build_predictor


@command("web", owned_by_checkpoint=True)
def main(cfg: Config) -> None:
    """Serve the page until the user interrupts."""
    if cfg.ckpt is None:
        raise UserError("ckpt: give the model, ckpt=outputs/.../checkpoints/best.ckpt")
    if isinstance(cfg.threshold, str | bool | None) or not 0 <= cfg.threshold <= 1:
        raise UserError(f"threshold={cfg.threshold}: must be a number between 0 and 1")
    if find_spec("gradio") is None:
        raise UserError("web: gradio is not installed; pip install 'maskrcnn-lightning[web]'")
    with open_port(cfg.host, cfg.port) as server, TemporaryDirectory(prefix="maskrcnn-web-") as folder:
        predictor = build_predictor(cfg)
        made, kept = Path(folder) / "made", Path(folder) / "kept"
        made.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(kept)  # pictures that are dropped go when the command ends
        from maskrcnn.web.page import build_page, serve  # noqa: PLC0415  # an extra, and slow to import

        page = build_page(predictor, threshold=cfg.threshold, title=Path(cfg.ckpt).name, folder=made)
        host = f"[{cfg.host}]" if server.family is socket.AF_INET6 else cfg.host
        print(f"http://{host}:{server.getsockname()[1]} (end with Ctrl-C)", flush=True)
        serve(page, server)


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens there, before the model is loaded.

    Args:
        host: Address of this machine that is listened on.
        port: 0 for any that is free.

    Raises:
        UserError: The port is taken, or there is no such address or port.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port={port}: taken by another program; choose another, or 0 for any") from None
        raise UserError(f"host={host}, port={port}: {error.strerror}; host=127.0.0.1 is this machine alone") from None
    except (OverflowError, TypeError):
        raise UserError(f"host={host}, port={port}: the host must be an address, the port 0 to 65535") from None


if __name__ == "__main__":
    main()
