"""Pictures of an episode: question, timeline, this turn's frames and the reward ledger.

The canvas has one fixed size, because RecordVideo refuses frames of different sizes. True segments
are drawn only once the episode is over, so that a watched episode gives nothing away.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gym_longvideo.episode import Answer, Episode, Malformed
from gym_longvideo.protocol import clock
from gym_longvideo.suite import lettered

WIDTH, HEIGHT = 1280, 720
MARGIN = 24
LEDGER_WIDTH = 330
BACKGROUND, PANEL, INK, FAINT = (250, 250, 248), (238, 238, 234), (32, 34, 40), (120, 124, 132)
TRACK, OVERVIEW, SEGMENT = (222, 222, 218), (96, 102, 112), (70, 165, 95)
TURN_COLOURS = ((214, 104, 40), (48, 110, 190), (150, 70, 170), (30, 150, 150), (190, 60, 90))
OUTCOMES = {
    "correct": (40, 130, 65),
    "wrong": (185, 45, 45),
    "unanswered": (185, 45, 45),
    "unscored": (90, 94, 102),
    "infra_error": (150, 100, 20),
}


def draw_canvas(episode: Episode, frames: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Draw the present state of an episode.

    Args:
        episode: The episode.
        frames: (n, H, W, 3) uint8, what the present turn shows.
        times: (n,) playback seconds of those frames.

    Returns:
        (720, 1280, 3) uint8 RGB.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    y = _draw_question(draw, episode)
    y = _draw_timeline(draw, episode, y + 14)
    _draw_ledger(draw, episode, WIDTH - MARGIN - LEDGER_WIDTH, y + 8)
    box = (MARGIN, y + 8, WIDTH - 2 * MARGIN - LEDGER_WIDTH, HEIGHT - MARGIN)
    _draw_frames(image, draw, episode, frames, times, box)
    return np.asarray(image)


def draw_text(episode: Episode) -> str:
    """Return the present state of an episode as plain text."""
    lines = [
        f"{episode.task.question}",
        *(f"  {option}" for option in lettered(episode.task.options)),
    ]
    lines.append(
        _bar(episode, {index: "o" for index in episode.overview.frame_index.tolist()}, "overview")
    )
    for k, log in enumerate(episode.turns):
        marks = {index: str(k + 1) for index in log.view.frame_index.tolist()}
        lines.append(_bar(episode, marks, _deed(episode, k)))
    if episode.over:
        lines.append(_bar(episode, dict.fromkeys(episode.relevant, "#"), "relevant"))
        total = math.fsum(row.total for row in episode.rows)
        lines.append(f"{episode.outcome}, reward {total:.3f}, {episode.frames_shown} frames shown")
    else:
        lines.append(
            f"turn {episode.turn + 1} of {episode.max_turns}, {episode.frames_left} frames left"
        )
    return "\n".join(lines)


def _bar(episode: Episode, marks: dict[int, str], label: str) -> str:
    width, length = 64, len(episode.pool_times)
    line = ["."] * min(width, length)
    for index, mark in marks.items():
        line[index * len(line) // length] = mark
    return f"[{''.join(line)}] {label}"


def _deed(episode: Episode, k: int) -> str:
    """Say what turn ``k`` did, in a few words."""
    log = episode.turns[k]
    match log.action:
        case Answer(choice):
            return f"answered {chr(ord('A') + choice)}"
        case Malformed(reason):
            return f"malformed: {reason}"
    start, end = log.interval
    iou = "" if math.isnan(log.iou) else f", IoU {log.iou:.2f}"
    return f"retrieved {start}-{end}{iou}"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _fit(text: str, width: float, font: Any) -> str:
    """Cut a text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle] + "...") <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "..."


def _wrap(text: str, width: float, font: Any, lines: int) -> list[str]:
    """Break a text into at most ``lines`` lines; the last one is cut to fit."""
    words, wrapped = " ".join(text.split()).split(" "), [""]
    for position, word in enumerate(words):
        longer = f"{wrapped[-1]} {word}".strip()
        if font.getlength(longer) <= width or not wrapped[-1]:
            wrapped[-1] = longer
        elif len(wrapped) == lines:
            wrapped[-1] = " ".join([wrapped[-1], *words[position:]])
            break
        else:
            wrapped.append(word)
    return [_fit(line, width, font) for line in wrapped]


def _draw_question(draw: ImageDraw.ImageDraw, episode: Episode) -> int:
    """Draw question and options; return the y below them."""
    y, large, small = MARGIN, _font(22), _font(17)
    for line in _wrap(episode.task.question, WIDTH - 2 * MARGIN, large, 2):
        draw.text((MARGIN, y), line, fill=INK, font=large)
        y += 29
    y += 4
    options = lettered(episode.task.options)
    columns = 4 if len(options) > 2 else 2
    cell = (WIDTH - 2 * MARGIN) / columns
    answered = next((t.action.choice for t in episode.turns if isinstance(t.action, Answer)), -1)
    for i, option in enumerate(options[:12]):
        x, line = MARGIN + (i % columns) * cell, y + (i // columns) * 26
        colour = INK
        if episode.over and i == episode.task.answer_index:
            colour = OUTCOMES["correct"]
        elif i == answered:
            colour = OUTCOMES["wrong"] if episode.task.answer_index is not None else INK
        mark = "> " if i == answered else ""
        draw.text((x, line), _fit(mark + option, cell - 12, small), fill=colour, font=small)
    return int(y + 26 * math.ceil(min(len(options), 12) / columns))


def _draw_timeline(draw: ImageDraw.ImageDraw, episode: Episode, top: int) -> int:
    """Draw the video as a bar with what was shown of it; return the y below."""
    left, right, font = MARGIN, WIDTH - MARGIN, _font(13)
    duration_s = max(episode.duration_s, 1e-9)

    def x_of(seconds: float) -> float:
        return left + (right - left) * min(max(seconds / duration_s, 0.0), 1.0)

    def band(start_s: float, end_s: float, y0: int, y1: int, colour: tuple[int, ...]) -> None:
        x0 = x_of(start_s)
        draw.rectangle((x0, y0, max(x0 + 2, x_of(end_s)), y1), fill=colour)

    bar = (top, top + 34)
    draw.rectangle((left, bar[0], right, bar[1]), fill=TRACK)
    if episode.over:
        for start_s, end_s in episode.task.segments_s:
            band(start_s, end_s, bar[0], bar[1], SEGMENT)
    for time_s in episode.overview.times:
        band(time_s, time_s, bar[0] + 4, bar[0] + 12, OVERVIEW)
    for k, log in enumerate(episode.turns):
        if len(log.view.frame_index):
            colour = TURN_COLOURS[k % len(TURN_COLOURS)]
            ends = episode.pool_times[list(log.interval)]
            band(ends[0], ends[1], bar[1] + 3 + 5 * (k % 2), bar[1] + 6 + 5 * (k % 2), colour)
            for time_s in log.view.times:
                band(time_s, time_s, bar[0] + 16, bar[1] - 3, colour)
    y = bar[1] + 16
    for part in (0.0, 0.5, 1.0):  # the legend needs the room between the first two
        label = clock(duration_s * part)
        x = left + (right - left - font.getlength(label)) * part
        draw.text((x, y), label, fill=FAINT, font=font)
    legend: list[tuple[str, tuple[int, ...]]] = [("overview", OVERVIEW)]
    legend += [
        (f"turn {k + 1}", TURN_COLOURS[k % len(TURN_COLOURS)])
        for k, log in enumerate(episode.turns)
        if len(log.view.frame_index)
    ]
    legend += [("relevant", SEGMENT)] if episode.over and episode.task.segments_s else []
    x = left + 60.0
    for label, colour in legend[:8]:
        draw.rectangle((x, y + 4, x + 10, y + 14), fill=colour)
        draw.text((x + 15, y), label, fill=FAINT, font=font)
        x += 28 + font.getlength(label)
    return y + 22


def _draw_ledger(draw: ImageDraw.ImageDraw, episode: Episode, left: int, top: int) -> None:
    """Draw what each turn did and earned."""
    right, font, small = WIDTH - MARGIN, _font(15), _font(13)
    draw.rectangle((left, top, right, HEIGHT - MARGIN), fill=PANEL)
    y = top + 12
    status = episode.outcome or f"turn {episode.turn + 1} of {episode.max_turns}"
    colour = OUTCOMES.get(episode.outcome, INK)
    draw.text((left + 14, y), status.replace("_", " "), fill=colour, font=_font(20))
    y += 34
    cells = (left + 196, left + 252, left + 316)
    for x, label in zip(cells, ("answer", "look", "format"), strict=True):
        draw.text((x, y), label, fill=FAINT, font=small, anchor="ra")
    y += 24
    rows = 5 if len(episode.turns) > 5 else len(episode.turns)
    for k in range(len(episode.turns) - rows, len(episode.turns)):
        row = episode.rows[k] if k < len(episode.rows) else None
        turn_colour = TURN_COLOURS[k % len(TURN_COLOURS)]
        draw.rectangle((left + 14, y + 3, left + 24, y + 13), fill=turn_colour)
        draw.text((left + 32, y), f"turn {k + 1}", fill=INK, font=font)
        if row is not None and (episode.over or episode.reward.timing == "immediate"):
            for x, value in zip(cells, row[:3], strict=True):
                draw.text(
                    (x, y), f"{value:+.2f}" if value else "0", fill=INK, font=font, anchor="ra"
                )
        elif row is not None:
            draw.text((cells[-1], y), "in escrow", fill=FAINT, font=font, anchor="ra")
        for line in _wrap(_deed(episode, k), right - left - 50, small, 2):
            y += 18
            draw.text((left + 32, y + 2), line, fill=FAINT, font=small)
        y += 28
    total = math.fsum(row.total for row in episode.rows) if episode.over else 0.0
    y = HEIGHT - MARGIN - 58
    draw.text((left + 14, y), f"reward {total:+.2f}", fill=INK, font=_font(20))
    shown = f"{episode.frames_shown} of {episode.budget.total} frames shown"
    draw.text((left + 14, y + 30), shown, fill=FAINT, font=small)


def _draw_frames(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    episode: Episode,
    frames: np.ndarray,
    times: np.ndarray,
    box: tuple[int, int, int, int],
) -> None:
    """Draw this turn's frames as a contact sheet that fills the box as well as it can."""
    left, top, right, bottom = box
    if not len(frames):
        draw.rectangle(box, fill=PANEL)
        note = "no new frames in this turn"
        centre = ((left + right) / 2, (top + bottom) / 2)
        draw.text(centre, note, fill=FAINT, font=_font(17), anchor="mm")
        return
    gap, caption, font = 8, 18, _font(13)
    count, (height, width) = len(frames), frames.shape[1:3]

    def scale_of(columns: int) -> float:
        rows = math.ceil(count / columns)
        across = (right - left - gap * (columns - 1)) / (columns * width)
        down = (bottom - top - (gap + caption) * rows) / (rows * height)
        return min(across, down)

    columns = max(range(1, count + 1), key=scale_of)
    scale = max(scale_of(columns), 1 / min(height, width))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    for i, frame in enumerate(frames):
        x = left + (i % columns) * (size[0] + gap)
        y = top + (i // columns) * (size[1] + gap + caption)
        image.paste(Image.fromarray(frame).resize(size, resample), (x, y))
        label = _fit(clock(times[i]), size[0] + gap, font)
        draw.text((x, y + size[1] + 1), label, fill=FAINT, font=font)
