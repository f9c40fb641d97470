"""The list of node modules. A new capability adds its module to `node_classes`; its classes are found by themselves."""

from __future__ import annotations


def node_classes() -> list[type]:
    """Every node class of the pack, module by module, in the order of definition."""
    from comfy_api.latest import io

    from . import (
        attention_error,
        body,
        cache,
        cache_plan,
        calibrate,
        calibrate_activations,
        camera,
        control,
        dynamic,
        guidance,
        interspatial_model,
        interspatial_viewer,
        measure,
        plan_precision,
        pose_following,
        puppet_body,
        puppet_control,
        quantise,
        refine,
        sources,
        speed,
        video_vae,
        warm_up,
        will_it_fit,
    )

    modules = (
        sources, speed, warm_up, cache, calibrate, dynamic, guidance, measure, attention_error, cache_plan,
        quantise, calibrate_activations, plan_precision, refine, will_it_fit,
        puppet_control, puppet_body, body, camera, control, interspatial_model, video_vae,
        pose_following, interspatial_viewer,
    )  # fmt: skip
    return [
        value
        for module in modules
        for value in vars(module).values()
        # `define_schema` of its own: a shared base class is no node; `__module__`: an imported class is another's.
        if isinstance(value, type) and issubclass(value, io.ComfyNode)
        and "define_schema" in vars(value) and value.__module__ == module.__name__
    ]
