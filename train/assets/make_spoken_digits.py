"""Makes spoken_digits.flac and spoken_digits.tsv from the Free Spoken Digit Dataset.

    python -m train.assets.make_spoken_digits FOLDER

FOLDER: the 3,000 files DIGIT_SPEAKER_INDEX.wav (github.com/Jakobovski/free-spoken-digit-dataset, by
Zohar Jackson and others, CC BY-SA 4.0).  Of every digit and speaker, recordings 0 (test), 5
(validation) and 10 to 12 (training) are joined, with their samples rounded to multiples of 4.
"""

import pathlib
import sys

import numpy as np
import soundfile

KEPT = (0, 5, 10, 11, 12)
RATE, STEP = 8000, 4
HERE = pathlib.Path(__file__).parent


def main(folder: pathlib.Path) -> None:
    """Writes both files beside this one."""
    lines, parts = [], []
    for file in sorted(folder.glob("*.wav")):
        if int(file.stem.rpartition("_")[2]) in KEPT:
            samples, rate = soundfile.read(file, dtype="int16")
            assert rate == RATE
            assert samples.ndim == 1
            rounded = np.clip((samples.astype(int) + STEP // 2) // STEP * STEP, -32768, 32764)
            parts.append(rounded.astype(np.int16))
            lines.append(f"{file.stem}\t{len(samples)}\n")
    (HERE / "spoken_digits.tsv").write_text("".join(lines))
    soundfile.write(HERE / "spoken_digits.flac", np.concatenate(parts), RATE, compression_level=1.0)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
