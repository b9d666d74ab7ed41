"""The parts of the page, and which action each event starts."""
from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ict.data import images
from ict.page.actions import NOTHING, SAMPLES, Actions, Value

HERE = Path(__file__).resolve().parent
THUMBNAIL_SIDE = 168
TEMPERATURES = [("the model's own", 0.0), ('0.4: careful', 0.4), ('0.7', 0.7), ('1.0', 1.0), ('1.3: daring', 1.3)]
HEADING = """
<h1>Complete a photograph</h1>
<p>Paint over what should go. You get several ideas of what could be there instead.</p>
"""
METHOD = """
The first network, a transformer, sees the photo shrunk to about a thousand coloured cells and draws the missing ones at
random, as a language model draws words. Each draw is a *prior*: a rough idea of what could be there. The second network
paints the details that fit it. Completions are ordered by their log-likelihood, the number below each of them. Nothing
under the strokes has any influence, and outside of them nothing changes.
"""


def build(actions: Actions, models: list[str]) -> gr.Blocks:
    """The page; the first of the models is chosen."""
    with gr.Blocks(title='Complete a photograph', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(HEADING, elem_id='heading')
        with gr.Row(elem_id='work'):
            with gr.Column(scale=5, min_width=340):
                canvas = _canvas()
            with gr.Column(scale=2, min_width=280):
                samples = gr.Slider(1, 8, 4, step=1, label='How many completions')
                with gr.Row():
                    complete = gr.Button('Complete', variant='primary', elem_id='complete', min_width=120)
                    cancel = gr.Button('Cancel', interactive=False, elem_id='cancel', min_width=120)
                progress = gr.HTML(elem_id='progress')
                with gr.Accordion('More settings', open=False):
                    grow = gr.Slider(0, 32, 4, step=1, label='Grow the hole', info='by so many pixels of the photo')
                    temperature = gr.Dropdown(TEMPERATURES, value=0.0, label='How daring (temperature)',
                                              info='higher: more varied, less likely')
                    calm = gr.Checkbox(False, label='Calm', info='one completion, the mean of what could be there')
                    steps = gr.Slider(1, 64, 16, step=1, label='Passes', info='more: slower, more coherent')
                    seed = gr.Number(0, precision=0, minimum=0, label='Seed', info='another one: other completions')
                    model = gr.Dropdown(models, value=models[0], label='Model')
                with gr.Accordion('How it works', open=False):
                    gr.Markdown(METHOD)

        for event in ('photo', 'sample', 'mask', 'go_on', 'download'):
            getattr(canvas, event)(getattr(actions, event), None, canvas, show_progress='hidden')

        def prepare(values: dict[Any, Any], request: gr.Request) -> list[gr.Button]:
            actions.prepare(values[canvas].get('marks', []), values[grow], request)
            return buttons(running=True)

        def compute(values: dict[Any, Any], request: gr.Request, bar: gr.Progress = gr.Progress()) -> Value:  # noqa: B008
            return actions.complete(values[model], {
                'samples': 1 if values[calm] else values[samples], 'steps': values[steps], 'seed': values[seed] or 0,
                'temperature': values[temperature] or None, 'deterministic': values[calm], 'geometry': 'hole',
                'progress': lambda done, total: bar((done, total), unit='passes')}, request)

        both = [complete, cancel]
        started = complete.click(prepare, {canvas, grow}, both, concurrency_limit=None, show_progress='hidden')
        computed = started.success(compute, {model, samples, steps, seed, temperature, calm}, canvas,
                                   concurrency_limit=1, show_progress_on=progress)
        computed.then(lambda: buttons(running=False), None, both, queue=False, show_progress='hidden')
        cancel.click(actions.cancel, None, canvas, queue=False, show_progress='hidden', cancels=computed)
        page.unload(actions.close)
    return page


def look() -> dict[str, Any]:
    """Theme and style sheet, for ``Blocks.launch``; with fonts of the visitor's own system, so that none is fetched."""
    theme = gr.themes.Default(primary_hue='indigo', neutral_hue='slate', font=('system-ui', 'sans-serif'),
                              font_mono=('ui-monospace', 'monospace'))
    return {'theme': theme, 'css': (HERE / 'page.css').read_text(encoding='utf-8')}


def buttons(running: bool) -> list[gr.Button]:
    """Complete and Cancel, one of which can be pressed."""
    return [gr.Button(interactive=not running), gr.Button(interactive=running)]


def _canvas() -> gr.HTML:
    template = (HERE / 'canvas.html').read_text(encoding='utf-8')
    template = template.replace('@samples', ''.join(map(_sample, sorted(SAMPLES.iterdir()))))
    template = template.replace('@extensions', ','.join(images.EXTENSIONS))
    return gr.HTML(NOTHING, html_template=template, css_template=(HERE / 'canvas.css').read_text(encoding='utf-8'),
                   js_on_load=(HERE / 'canvas.js').read_text(encoding='utf-8'), apply_default_css=False,
                   elem_id='canvas')


def _sample(path: Path) -> str:
    """A button with a small copy of a bundled photo."""
    small = Image.fromarray(images.load_rgb(path))
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, 'JPEG')
    address = f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'
    return f'<button type="button" data-sample="{path.name}"><img src="{address}" alt="{path.stem}"></button>'
