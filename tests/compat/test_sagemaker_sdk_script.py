"""The example that was moved to rayfm by one line, and SageMaker's SDK, from which it came."""

import re
from pathlib import Path

from tests.documents import blocks

SCRIPT = (Path(__file__).parents[2] / "examples" / "moved_from_sagemaker.py").read_text()

NAMES_OF_A_SCRIPT = """
import ast, importlib, inspect, sys
tree, missing = ast.parse(sys.argv[1]), []
sagemaker = importlib.import_module("sagemaker")
found = {"fm": sagemaker.FactorizationMachines, "transformer": sagemaker.transformer.Transformer}
found["predictor"] = sagemaker.predictor.Predictor
for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("sagemaker."):
        try:
            eval(ast.unparse(node), {"sagemaker": sagemaker})
        except AttributeError as error:
            missing.append(str(error))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        if node.func.value.id in found:
            call = getattr(found[node.func.value.id], node.func.attr)
            try:
                inspect.signature(call).bind(None, *node.args, **{word.arg: word.value for word in node.keywords})
            except TypeError as error:
                missing.append(f"{ast.unparse(node)}: {error}")
print(missing)
"""


def changed_lines():
    """The line of SageMaker's script and the line here."""
    (diff,) = [block.text for block in blocks("examples/README.md") if block.language == "diff"]
    assert diff.replace("\n", "\n    ").strip() in SCRIPT  # its docstring shows the same
    before, after = diff.splitlines()
    return before.removeprefix("-"), after.removeprefix("+")


def test_script__is_changed_in_one_line_and_asks_for_nothing_else_of_rayfm():
    before, after = changed_lines()
    assert SCRIPT.splitlines().count(after) == 1
    original = SCRIPT.partition('"""\n\n')[2].replace(after, before)
    imported = re.findall(r"^(?:import|from) (\w+)", original, re.M)
    assert imported == ["json", "numpy", "sagemaker"]
    assert "rayfm" not in original


def test_script__before_the_change_is_one_for_sagemakers_sdk(run_with_sagemaker):
    """All that it names is there, and its calls have arguments that fit: it is not made up for rayfm."""
    before, after = changed_lines()
    assert run_with_sagemaker(NAMES_OF_A_SCRIPT, SCRIPT.replace(f"\n{after}\n", f"\n{before}\n")) == "[]"
    wrong = "import sagemaker\nfm.fit([], batch=3)\nsagemaker.serializers.Nothing\n"
    found = run_with_sagemaker(NAMES_OF_A_SCRIPT, wrong)
    assert "unexpected keyword argument 'batch'" in found and "no attribute 'Nothing'" in found
