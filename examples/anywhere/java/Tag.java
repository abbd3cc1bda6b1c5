import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.google.gson.Gson;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;

/** Tags a clip: java -cp 'target/dependency/*' Tag.java model.onnx clip.json. */
public final class Tag {
  record Clip(double[][] frames) {}

  record Feature(int width) {}

  record Schema(Feature[] features, String dtype) {}

  public static void main(String[] arguments) throws Exception {
    var json = new Gson();
    var environment = OrtEnvironment.getEnvironment();
    try (var options = new OrtSession.SessionOptions()) {
      // Computes with the weights exactly as they are stored; without it probabilities differ by up to 1e-4.
      options.addConfigEntry("session.disable_quant_qdq", "1");
      try (var session = environment.createSession(arguments[0], options)) {
        Map<String, String> known = session.getMetadata().getCustomMetadata();
        var schema = json.fromJson(known.get("reeltag.schema"), Schema.class);
        var names = json.fromJson(known.get("reeltag.label_names"), String[].class); // null without names
        var clip = json.fromJson(Files.readString(Path.of(arguments[1])), Clip.class);
        float[] scores = probabilities(environment, session, schema, clip.frames());
        IntStream.range(0, scores.length).boxed().sorted(Comparator.comparing(number -> -scores[number])).limit(5)
            .forEach(number -> System.out.printf(
                Locale.ROOT, "  %.6f  %d  %s%n", scores[number], number, names == null ? number : names[number]));
      }
    }
  }

  /** Returns the probability of each class for a clip of T frames of D values. */
  static float[] probabilities(OrtEnvironment environment, OrtSession session, Schema schema, double[][] frames)
      throws OrtException {
    try (var input = tensor(environment, schema, frames);
        var lengths = OnnxTensor.createTensor(environment, new long[] {frames.length});
        var outputs = session.run(Map.of("frames", input, "lengths", lengths), Set.of("probabilities"))) {
      return ((float[][]) outputs.get(0).getValue())[0];
    }
  }

  private static OnnxTensor tensor(OrtEnvironment environment, Schema schema, double[][] frames) throws OrtException {
    int width = IntStream.range(0, schema.features().length).map(each -> schema.features()[each].width()).sum();
    long[] shape = {1, frames.length, width};
    var bytes = ByteBuffer.allocate(frames.length * width);
    var floats = FloatBuffer.allocate(frames.length * width);
    for (double[] frame : frames) {
      if (frame.length != width) throw new IllegalArgumentException("a frame must have " + width + " values");
      for (double value : frame) {
        floats.put((float) value);
        bytes.put((byte) (int) value); // Java has no unsigned byte: 255 is stored as -1, with the same bits
        if (schema.dtype().equals("uint8") && value != (bytes.get(bytes.position() - 1) & 255))
          throw new IllegalArgumentException(value + " is not from 0 to 255");
      }
    }
    return schema.dtype().equals("uint8")
        ? OnnxTensor.createTensor(environment, bytes.flip(), shape, OnnxJavaType.UINT8)
        : OnnxTensor.createTensor(environment, floats.flip(), shape);
  }
}
